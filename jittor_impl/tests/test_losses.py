"""The folder of losses: its registry, its examples, and copies of it in another project."""

import jittor as jt
import pytest

from common.tests.backend_checks.losses import *  # noqa: F403
from jittor_impl import cache


@pytest.fixture(autouse=True)
def compiled_already(monkeypatch):
    """Another project's program would compile a Jittor of its own; here it takes this one."""
    monkeypatch.setenv("HOME", str(cache.home()))


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
