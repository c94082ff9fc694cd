"""The backbones in MXNet: published names and shapes, refused input, and the layers of our own.

Their numbers are level 4 of the parity suite.
"""

import numpy as np
import pytest
from mxnet import autograd, nd
from mxnet.gluon import nn

from common.tests.published_networks import published_shapes
from mxnet_impl.backbones import BACKBONES, create_backbone
from mxnet_impl.backbones._layers import BatchNorm1D, PReLU, SyncBatchNorm
from mxnet_impl.checkpoint import parameter_specs


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "iresnet_small"])
def test_names_and_shapes_are_the_published_ones(name):
    shapes = {key: spec.shape for key, spec in parameter_specs(create_backbone(name)).items()}
    assert shapes == {key: shape for key, shape in published_shapes(name).items() if "num_batches" not in key}


@pytest.mark.parametrize("name", ["iresnet_small", "ir50", "mobilefacenet"])
@pytest.mark.parametrize("shape", [(2, 3, 64, 48), (2, 1, 48, 48), (3, 48, 48)])
def test_images_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"images: expected \(N, 3, 48, 48\), got \(.*48"):
        create_backbone(name, 16, 48)(nd.zeros(shape))


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
        found = []
        network = create_backbone(name, 16, 32, **options)
        network.apply(lambda layer: found.append(layer._rate) if isinstance(layer, nn.Dropout) else None)
        return found

    assert rates() == [default]
    assert rates(dropout=0.25) == [0.25]
    assert rates(dropout=0.0) == [0.0]


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
