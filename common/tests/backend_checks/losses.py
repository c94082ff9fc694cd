"""What every backend's `losses/` promises: a registry, examples that run, and copies that work in another project.

A test file that imports this defines `train_a_step(module, case, **options)`. It imports what it needs itself, as its
source also runs in a process without this project: one step of SGD with `module`'s SFaceHead on the arrays of `case`.
It returns the loss and the prototypes after the step. `half_precision(head, case)` rounds embeddings and prototypes to
half precision and takes labels of int32. It returns both as rounded, the loss, and the gradient of the prototypes.
`START` may hold lines that the process without this project begins with.
"""

import doctest
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.config import HEADS
from parity_tests.cases.inputs import planted
from parity_tests.truth.margin_heads import margin_loss

PROGRAM = """
{start}
import importlib.util

import numpy as np

{source}

assert importlib.util.find_spec("common") is importlib.util.find_spec("{package}") is None
loss, class_weight = train_a_step("{module}", np.load("case.npz"), **{options})
np.savez("found.npz", loss=loss, class_weight=class_weight)
"""


def test_the_registry_has_the_heads_of_the_configuration(backend):
    assert tuple(backend.module("losses").HEADS) == HEADS


@pytest.mark.parametrize("name", [name for name in HEADS if name != "sface"])
def test_margin_heads_in_half_precision(backend, request, name):
    """They compute in float32: 8 or 11 bits of an angle would not do."""
    case, head = planted(), backend.module("losses").HEADS[name]
    embeddings, class_weight, loss, gradient = request.module.half_precision(head(24, 30), case)
    truth = margin_loss(name, embeddings, class_weight, case.labels, margin=0.35 if name == "cosface" else 0.5)
    assert loss == pytest.approx(truth.loss, rel=1e-5, abs=1e-5)
    error = np.abs(gradient - truth.grad_class_weight).max() / np.abs(truth.grad_class_weight).max()
    assert 1e-6 < error < 2**-8, "of half precision"


def test_the_examples_run(backend):
    attempted = {}
    for path in sorted(Path(backend.module("losses").__file__).parent.glob("*.py")):
        name = "losses" if path.stem == "__init__" else f"losses.{path.stem}"
        failed, attempted[path.stem] = doctest.testmod(backend.module(name))
        assert failed == 0, name
    assert {name for name, count in attempted.items() if count} == {"__init__", "margin_heads", "sface"}


def test_a_copy_of_the_folder_trains(backend, request, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    losses = Path(backend.module("losses").__file__).parent
    shutil.copytree(losses, tmp_path / "their_project" / "losses", ignore=ignored)
    check_copy(backend, request, tmp_path, "their_project.losses", {})


def test_a_copy_of_the_one_file_trains_with_the_plain_form(backend, request, tmp_path):
    shutil.copy(backend.module("losses.sface").__file__, tmp_path / "their_loss.py")
    check_copy(backend, request, tmp_path, "their_loss", {"form": "plain"})


def check_copy(backend, request, folder, module, options):
    random = np.random.default_rng(0)
    case = {
        "embeddings": random.standard_normal((6, 8)).astype(np.float32),
        "class_weight": random.standard_normal((10, 8)).astype(np.float32),
        "labels": np.arange(6),
    }
    np.savez(folder / "case.npz", **case)
    train_a_step = request.module.train_a_step
    source = inspect.getsource(train_a_step)
    start = getattr(request.module, "START", "")
    program = PROGRAM.format(start=start, source=source, package=backend.package, module=module, options=options)
    (folder / "program.py").write_text(program, "utf-8")
    done = subprocess.run([sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "found.npz")
    loss, class_weight = train_a_step(f"{backend.package}.losses", case, **options)
    assert found["loss"] == loss
    np.testing.assert_array_equal(found["class_weight"], class_weight)
    assert not np.allclose(class_weight, case["class_weight"], rtol=1e-3), "the step must move the prototypes"
