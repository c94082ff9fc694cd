"""The examples in docstrings give what they show. A module with `>>>` in a docstring must be in MODULES."""

import doctest
import importlib
import tempfile
from pathlib import Path

import pytest

import common

MODULES = (
    "common.datasets.alignment",
    "common.datasets.images",
    "common.datasets.label_noise",
    "common.datasets.loader",
    "common.datasets.pair_sets",
    "common.datasets.records",
    "common.datasets.training_sets",
    "common.evaluation.model",
    "common.evaluation.verification",
    "common.io.files",
    "common.io.memory",
    "common.io.pickles",
    "common.io.progress",
    "common.io.rows",
    "common.io.text",
    "common.weights.architectures",
    "common.weights.checkpoint",
    "common.weights.foreign.names",
    "common.weights.initialisation",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # pytest deletes what the examples write
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert failed == 0
    assert attempted > 0


def test_no_example_is_left_out():
    package = Path(common.__file__).parent
    files = [file for file in package.rglob("*.py") if "tests" not in file.parts and ">>> " in file.read_text("utf-8")]
    assert {".".join(file.relative_to(package.parent).with_suffix("").parts) for file in files} == set(MODULES)
