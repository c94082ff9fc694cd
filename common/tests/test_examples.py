"""The examples in docstrings give what they show."""

import doctest
import importlib
import tempfile

import pytest

MODULES = (
    "common.datasets.alignment",
    "common.datasets.images",
    "common.datasets.label_noise",
    "common.datasets.loader",
    "common.datasets.pair_sets",
    "common.datasets.records",
    "common.datasets.training_sets",
    "common.io.files",
    "common.io.pickles",
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
