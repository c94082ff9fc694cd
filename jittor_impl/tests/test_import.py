"""Weights as Jittor itself writes them, imported."""

import jittor as jt
import numpy as np
import pytest

from common.tests.backend_checks.checkpoint import same
from common.tests.backend_checks.imports import *  # noqa: F403
from common.tests.backend_checks.imports import imported
from common.weights.checkpoint import load_checkpoint
from jittor_impl.tests.test_checkpoint import network


@pytest.mark.parametrize("name", ["iresnet_small", "mobilefacenet"])
def test_what_jittor_saves(backend, tmp_path, name):
    """`Module.save`, as liubingyuu/jittorface calls it."""
    module = network(name)
    module.save(str(tmp_path / "weights.pkl"))
    options = ("--backbone", name, "--pixel-scale", "1/128", "--image-size", "32")
    arrays = load_checkpoint(imported(backend, tmp_path / "weights.pkl", tmp_path / "out", *options)).arrays
    assert same(arrays, {f"backbone.{key}": value.numpy() for key, value in module.state_dict().items()})


def test_what_jittor_saves_as_arrays(backend, tmp_path):
    module = network("iresnet_small")
    arrays = {key: np.array(value.numpy()) for key, value in module.state_dict().items()}
    jt.save({"model": arrays, "step": 3}, str(tmp_path / "weights.pkl"))
    options = ("--backbone", "iresnet_small", "--pixel-scale", "1/128", "--image-size", "32")
    found = load_checkpoint(imported(backend, tmp_path / "weights.pkl", tmp_path / "out", *options)).arrays
    assert same(found, {f"backbone.{key}": value for key, value in arrays.items()})
