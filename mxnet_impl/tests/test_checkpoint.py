"""Canonical arrays in and out of MXNet blocks."""

import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from common.tests.backend_checks.checkpoint import *  # noqa: F403
from common.tests.backend_checks.checkpoint import NETWORKS, random_arrays
from mxnet_impl.backbones import create_backbone
from mxnet_impl.checkpoint import from_canonical, parameter_specs, to_canonical


def network(name, dtype="float32"):
    block = create_backbone(name, 16, 32)
    block.initialize()
    block.cast(dtype)
    return block


@pytest.mark.parametrize(("name", "dtype"), NETWORKS)
def test_the_same_arrays_give_the_same_embeddings(name, dtype):
    source, target = network(name, dtype), network(name, dtype)
    for block in (source, target):
        from_canonical(block, random_arrays(to_canonical(block)))
    x = nd.random.normal(shape=(2, 3, 32, 32), dtype=dtype)
    assert np.array_equal(source(x).asnumpy(), target(x).asnumpy())


def test_a_layer_that_nobody_described_is_refused():
    layers = nn.HybridSequential()
    layers.add(nn.Dense(3, in_units=2), nn.LayerNorm(in_channels=3))
    with pytest.raises(ValueError, match=r"1.gamma: expected a parameter listed in KINDS, got LayerNorm.gamma"):
        parameter_specs(layers)
