"""The backbones in Jittor: published names and shapes, refused input, and the layers of our own.

Their numbers are level 4 of the parity suite.
"""

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from common.tests.published_networks import published_shapes
from jittor_impl.backbones import BACKBONES, _layers, create_backbone
from jittor_impl.backbones._layers import BatchNorm, PReLU
from jittor_impl.checkpoint import parameter_specs


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "iresnet_small"])
def test_names_and_shapes_are_the_published_ones(name):
    shapes = {key: spec.shape for key, spec in parameter_specs(create_backbone(name)).items()}
    assert shapes == {key: shape for key, shape in published_shapes(name).items() if "num_batches" not in key}


@pytest.mark.parametrize("name", ["iresnet_small", "ir50", "mobilefacenet"])
@pytest.mark.parametrize("shape", [(2, 3, 64, 48), (2, 1, 48, 48), (3, 48, 48)])
def test_images_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"images: expected \(N, 3, 48, 48\), got \(.*48"):
        create_backbone(name, 16, 48)(jt.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50",), "backbone: expected one of iresnet_small, iresnet18, .*mobilefacenet, got 'resnet50'"),
        (("iresnet50", 0), "embedding_size: expected at least 1, got 0"),
        (("iresnet50", 16, 112, 1.0), "dropout: expected at least 0 and below 1, got 1.0"),
        (("iresnet50", 16, 15), "image_size: expected at least 16, got 15"),
        (("ir50", 16, 0), "image_size: expected at least 16, got 0"),
        (("mobilefacenet", 16, -16), "image_size: expected at least 16, got -16"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(*arguments)


@pytest.mark.parametrize(("name", "default"), [("iresnet18", 0.4), ("ir50", 0.5), ("mobilefacenet", 0)])
def test_dropout(name, default):
    def rates(**options):
        return [m.p for m in create_backbone(name, 16, 32, **options).modules() if isinstance(m, nn.Dropout)]

    assert rates() == [default]
    assert rates(dropout=0.25) == [0.25]
    assert rates(dropout=0.0) == [0.0]


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
