"""The backbones in MXNet: published names and shapes, refused input, and the layers of our own.

Their numbers are level 4 of the parity suite.
"""

import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from common.tests.backend_checks.backbones import *  # noqa: F403
from mxnet_impl.backbones._layers import BatchNorm1D, PReLU, SyncBatchNorm


def zeros(shape):
    return nd.zeros(shape)


def dropout_rates(network):
    found = []
    network.apply(lambda layer: found.append(layer._rate) if isinstance(layer, nn.Dropout) else None)
    return found


@pytest.mark.parametrize("hybrid", [False, True])
def test_prelu_is_the_layer_of_gluon(hybrid):
    """Weights above 1 and below 0 too; the same to rounding, measured 2e-7."""
    random = np.random.default_rng(0)
    x = nd.array(random.standard_normal((2, 5, 3, 4)))
    slopes = nd.array([0.25, 1.5, -0.5, 0.0, 1.0])
    results = []
    for layer in (PReLU(5), nn.PReLU(in_channels=5)):
        layer.initialize()
        weight = layer.weight if isinstance(layer, PReLU) else layer.alpha
        weight.set_data(slopes)
        if hybrid:
            layer.hybridize()
        x.attach_grad()
        with autograd.record():
            y = layer(x)
            (y * y).sum().backward()
        results.append([array.asnumpy() for array in (y, x.grad, weight.grad())])
    for ours, theirs in zip(*results, strict=True):
        assert np.abs(ours - theirs).max() < 1e-6 * np.abs(theirs).max()


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3)])
def test_batch_norm_over_one_rank_is_the_layer_of_gluon(shape):
    """In training: output, gradients and what it stores; then in inference."""
    random = np.random.default_rng(0)
    x, grad = (nd.array(3 * random.standard_normal(shape) + 1, dtype="float64") for _ in range(2))
    results = []
    for converted in (False, True):
        layer = (nn.BatchNorm if len(shape) == 4 else BatchNorm1D)(momentum=0.0, in_channels=3)
        layer.initialize()
        layer.cast("float64")
        layer.gamma.set_data(nd.array([0.5, 1.0, 2.0], dtype="float64"))
        layer.beta.set_data(nd.array([-1.0, 0.0, 3.0], dtype="float64"))
        if converted:
            layer.__class__, layer.average = SyncBatchNorm, lambda what, tensor: tensor
        x.attach_grad()
        with autograd.record():
            y = layer(x)
        y.backward(grad)
        gradients = [layer.gamma.grad(), layer.beta.grad(), x.grad.copy()]
        results.append([y, *gradients, layer.running_mean.data(), layer.running_var.data(), layer(x)])
    for found, expected in zip(*reversed(results), strict=True):
        assert np.abs((found - expected).asnumpy()).max() < 1e-12


def test_batch_norm_of_a_matrix_survives_inference_after_convolutions():
    """Dense, then `nn.BatchNorm`, ends the process on a CPU (MXNet 1.9.1)."""
    network = nn.HybridSequential()
    network.add(nn.Conv2D(8, 3, in_channels=3), nn.Dense(6, in_units=8 * 36), BatchNorm1D(in_channels=6))
    network.initialize()
    x = nd.random.normal(shape=(4, 3, 8, 8))
    expected = network[1](network[0](x)) / np.sqrt(1 + 1e-5)
    assert np.abs((network(x) - expected).asnumpy()).max() < 1e-5 * np.abs(expected.asnumpy()).max()
