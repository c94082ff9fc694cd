"""The trainer against its contract, and what MXNet's lacks."""

import pytest

from common.tests.backend_checks.trainer import *  # noqa: F403
from common.tests.backend_checks.trainer import CLASSES, configured
from mxnet_impl.trainer import Trainer


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_refused(precision):
    with pytest.raises(ValueError, match=f"precision: expected fp32 or fp64 with MXNet, got '{precision}'"):
        Trainer(configured(precision=precision), CLASSES)


def test_compiling_is_refused():
    with pytest.raises(ValueError, match="compile: expected false with MXNet, got true"):
        Trainer(configured(compile=True), CLASSES)
