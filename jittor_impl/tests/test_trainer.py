"""The trainer against its contract, and what Jittor's lacks."""

import pytest

from common.tests.backend_checks.trainer import *  # noqa: F403
from common.tests.backend_checks.trainer import CLASSES, configured
from jittor_impl.trainer import Trainer


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_refused(precision):
    with pytest.raises(ValueError, match=f"precision: expected fp32 or fp64 with Jittor, got '{precision}'"):
        Trainer(configured(precision=precision), CLASSES)


def test_double_precision_is_refused_on_a_gpu(monkeypatch):
    monkeypatch.setattr("jittor_impl.runtime.resolve_device", lambda name: "cuda:0")
    with pytest.raises(ValueError, match="precision: expected fp32 on cuda:0, got fp64"):
        Trainer(configured(precision="fp64"), CLASSES)


def test_compiling_is_refused():
    with pytest.raises(ValueError, match="compile: expected false with Jittor, got true"):
        Trainer(configured(compile=True), CLASSES)
