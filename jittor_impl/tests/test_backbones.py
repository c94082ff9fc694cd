"""The backbones in Jittor: published names and shapes, refused input, and the layers of our own.

Their numbers are level 4 of the parity suite.
"""

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from common.tests.backend_checks.backbones import *  # noqa: F403
from jittor_impl.backbones import _layers
from jittor_impl.backbones._layers import BatchNorm, PReLU


def zeros(shape):
    return jt.zeros(shape)


def dropout_rates(network):
    return [module.p for module in network.modules() if isinstance(module, nn.Dropout)]


SHAPES = [(6, 3), (4, 3, 5, 7)]


def outputs_and_gradients(function, inputs):
    output = function(*inputs)
    gradients = jt.grad((output * output * output).sum(), inputs)
    return [var.numpy() for var in (output, *gradients)]


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


# the same to rounding; measured 4e-16 and 3e-7
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
@pytest.mark.parametrize("shape", SHAPES)
def test_loops_compute_what_the_operators_compute(shape, dtype, tolerance):
    """A CUDA device runs the operators; slopes above 1 and below 0 too."""
    random = np.random.default_rng(0)
    x = jt.array(random.standard_normal(shape), dtype)
    weight, bias = jt.array([0.25, 1.5, -0.5], dtype), jt.array([1.0, 2.0, 3.0], dtype)
    assert_same(
        outputs_and_gradients(_layers._BatchNormLoops(1e-2), [x, weight, bias]),
        outputs_and_gradients(lambda *inputs: _layers._batch_norm(*inputs, 1e-2)[0], [x, weight, bias]),
        tolerance,
    )
    assert_same(
        outputs_and_gradients(_layers._PReLULoops(), [x, weight]),
        outputs_and_gradients(_layers._prelu, [x, weight]),
        tolerance,
    )
    statistics = _layers._BatchNormLoops(1e-2)
    statistics(x, weight, bias)
    expected = _layers._batch_norm(x, weight, bias, 1e-2)[1:]
    assert_same([statistics.mean.numpy(), statistics.var.numpy()], [var.numpy() for var in expected], tolerance)
    with jt.no_grad():
        without_gradients = _layers._affine(x, bias, weight, bias).numpy()
    assert_same([without_gradients], [_layers._affine(x, bias, weight, bias).numpy()], tolerance)


def test_prelu_is_the_layer_of_jittor():
    x, ours, theirs = jt.randn(4, 3, 5, 5), PReLU(3), nn.PReLU(3)
    ours.weight = theirs.weight = jt.array([0.25, 1.5, -0.5])
    assert np.abs((ours(x) - theirs(x)).numpy()).max() < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_far_from_zero(shape):
    """A mean of 1,000 standard deviations: E[x^2] - E[x]^2 in float32 would leave nothing of the variance."""
    x = 1000 + np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    axes, exact = (0, *range(2, x.ndim)), x.astype(np.float64)
    layer = BatchNorm(3)
    y = layer(jt.array(x)).numpy()
    mean, var = exact.mean(axes, keepdims=True), exact.var(axes, keepdims=True)
    assert np.abs(y - (exact - mean) / np.sqrt(var + 1e-5)).max() < 1e-3  # float32 holds x to 6e-5; measured 1e-4
    assert layer.running_var.numpy() == pytest.approx(0.9 + 0.1 * exact.var(axes, ddof=1), rel=1e-4)
    assert layer.running_mean.numpy() == pytest.approx(0.1 * mean.ravel(), rel=1e-5)
