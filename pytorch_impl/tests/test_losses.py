"""The folder of losses: its registry, its examples, and copies of it in another project."""

import subprocess
import sys

import torch

from common.tests.backend_checks.losses import *  # noqa: F403


def train_a_step(module, case, **options):
    import importlib

    import torch

    head = importlib.import_module(module).SFaceHead(*case["class_weight"].shape[::-1], **options)
    head.class_weight.data = torch.tensor(case["class_weight"])
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    loss = head(torch.tensor(case["embeddings"]), torch.tensor(case["labels"])).loss
    loss.backward()
    optimizer.step()
    return loss.item(), head.class_weight.detach().numpy()


def test_the_import_does_not_load_the_compiler():
    """torch.compiler.disable as a decorator did: 800 modules, a second."""
    program = "import sys, pytorch_impl.losses.streamed; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def half_precision(head, case):
    head.class_weight.data = torch.tensor(case.class_weight)
    head.bfloat16()
    embeddings = torch.tensor(case.embeddings).bfloat16()
    loss = head(embeddings, torch.tensor(case.labels).int()).loss
    loss.backward()
    arrays = (tensor.detach().double().numpy() for tensor in (embeddings, head.class_weight, head.class_weight.grad))
    rounded, class_weight, gradient = arrays
    return rounded, class_weight, loss.item(), gradient
