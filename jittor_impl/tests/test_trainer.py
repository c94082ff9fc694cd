"""The trainer against its contract, and what Jittor's lacks on a GPU."""

import pytest

from common.tests.backend_checks.trainer import *  # noqa: F403
from common.tests.backend_checks.trainer import CLASSES, configured
from jittor_impl.tests.conftest import BACKEND
from parity_tests.backends import jittor as adapter


def test_double_precision_is_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr("jittor_impl.runtime.resolve_device", lambda name: "cuda:0")
    with pytest.raises(ValueError, match="--precision: expected fp32 with Jittor on cuda, got fp64"):
        BACKEND.create_trainer(configured(precision="fp64", device="cuda"), CLASSES)


def test_the_parity_suite_is_told_what_cuda_lacks(monkeypatch):
    monkeypatch.setattr("jittor_impl.runtime.resolve_device", lambda name: "cuda:0")
    for precision, kind, reason in (
        ("fp64", "sface", "cuBLAS"),
        ("fp64", "train", "cuBLAS"),
        ("bf16", "sface", "fp32"),
    ):
        assert reason in adapter.use("cuda", precision, kind)
    assert adapter.use("cuda", "fp64", "sface_weights") is None
    assert adapter.use("cuda", "fp32", "train") is None
