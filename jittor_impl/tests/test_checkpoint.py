"""Canonical arrays in and out of Jittor modules."""

import jittor as jt
import pytest
from jittor import nn

from common.tests.backend_checks.checkpoint import *  # noqa: F403
from common.tests.backend_checks.checkpoint import random_arrays
from jittor_impl.backbones import create_backbone
from jittor_impl.checkpoint import from_canonical, parameter_specs, to_arrays, to_canonical


def network(name, dtype="float32"):
    module = create_backbone(name, 16, 32)
    if dtype == "float64":
        module.float64()
    return module


def test_loading_keeps_what_trains():
    """Assigning to a Var can turn a running statistic or a fixed weight into a parameter."""

    def fixed(module):
        return {name for name, tensor in module.state_dict().items() if tensor.is_stop_grad()}

    module = network("iresnet_small")
    expected = {name for name in to_canonical(module) if ".running_" in name} | {"features.weight"}
    assert fixed(module) == expected
    from_canonical(module, random_arrays(to_canonical(module)))
    assert fixed(module) == expected


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="x: expected float32 or float64, got int32"):
        to_arrays({"x": jt.zeros(3, "int32")})


def test_a_layer_that_nobody_described_is_refused():
    with pytest.raises(ValueError, match=r"1.weight: expected a parameter listed in KINDS, got LayerNorm.weight"):
        parameter_specs(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
