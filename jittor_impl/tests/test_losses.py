"""The folder of losses: its registry, its examples, and copies of it in another project."""

from pathlib import Path

import jittor as jt

from common.tests.backend_checks.losses import *  # noqa: F403

# Another project's Jittor would be compiled for minutes. The program takes the one that is compiled, and nothing else.
START = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import jittor_impl
del sys.path[0]
for name in [name for name in sys.modules if name.split(".")[0] in ("common", "jittor_impl")]:
    del sys.modules[name]
"""


def train_a_step(module, case, **options):
    import importlib

    import jittor as jt

    head = importlib.import_module(module).SFaceHead(*case["class_weight"].shape[::-1], **options)
    head.class_weight = jt.array(case["class_weight"])
    optimizer = jt.optim.SGD(head.parameters(), lr=0.1)
    loss = head(jt.array(case["embeddings"]), jt.array(case["labels"])).loss
    optimizer.step(loss)
    return loss.item(), head.class_weight.numpy()


def half_precision(head, case):
    head.class_weight = jt.array(case.class_weight, "float16")
    embeddings = jt.array(case.embeddings, "float16")
    loss = head(embeddings, jt.array(case.labels, "int32")).loss
    gradient = jt.grad(loss, head.class_weight)
    rounded, class_weight, gradient = (array.numpy() for array in (embeddings, head.class_weight, gradient))
    return rounded, class_weight, loss.item(), gradient
