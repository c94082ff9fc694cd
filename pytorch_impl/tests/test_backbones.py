"""The backbones against descriptions written independently of them: lists of names and shapes, and plain NumPy."""

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from common.tests.backend_checks.backbones import *  # noqa: F403
from common.tests.backend_checks.checkpoint import random_arrays
from common.tests.published_networks import published_shapes
from parity_tests.truth import networks
from pytorch_impl.backbones import BACKBONES, create_backbone
from pytorch_impl.backbones._prelu import PReLU
from pytorch_impl.backbones.ir import IR
from pytorch_impl.backbones.iresnet import IResNet
from pytorch_impl.backbones.mobilefacenet import MobileFaceNet
from pytorch_impl.backbones.mobilenet_v1 import MobileNetV1
from pytorch_impl.checkpoint import from_canonical, to_canonical

RUN_AT_112 = ("iresnet_small", "iresnet18", "iresnet50", "ir50", "ir_se50", "mobilefacenet", "mobilenet_v1")


def zeros(shape):
    return torch.zeros(shape)


def dropout_rates(network):
    return [module.p for module in network.modules() if isinstance(module, nn.Dropout)]


def images(count=2, size=112, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# Names and shapes


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "iresnet_small"])
def test_names_and_shapes_are_the_published_ones(name):
    """In place of the test of all backends: counters too."""
    with torch.device("meta"):
        backbone = create_backbone(name)
    shapes = {key: tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}
    assert shapes == published_shapes(name)


@pytest.mark.parametrize(
    ("name", "tensors", "millions"),
    [
        ("iresnet50", 24 * 18 + 4 * 6 + 19, 43.59),
        ("iresnet100", 49 * 18 + 4 * 6 + 19, 65.16),
        ("ir50", 24 * 13 + 3 * 6 + 19, 43.57),
        ("mobilefacenet", 2 * 7 + 15 * 20 + 7 + 6 + 7, 1.2),
        ("mobilenet_v1", 27 * 7 + 5 + 7, 28.91),
    ],
)
def test_sizes(name, tensors, millions):
    with torch.device("meta"):
        backbone = create_backbone(name)
    assert len(backbone.state_dict()) == tensors
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6, 2) == millions


def test_parameter_counts_by_hand():
    body = 0
    for in_width, width, blocks in [(64, 64, 3), (64, 128, 4), (128, 256, 14), (256, 512, 3)]:
        body += 2 * in_width + 9 * in_width * width + 3 * width + 9 * width**2 + 2 * width  # first block
        body += in_width * width + 2 * width  # its shortcut
        body += (blocks - 1) * (18 * width**2 + 7 * width)
    stem, head = 27 * 64 + 3 * 64, 2 * 512 + 25088 * 512 + 512 + 2 * 512
    with torch.device("meta"):
        iresnet50, ir50 = create_backbone("iresnet50"), create_backbone("ir50")
    assert sum(p.numel() for p in iresnet50.parameters()) == stem + body + head == 43_590_848
    middle_bn, first_shortcut = 2 * (3 * 64 + 4 * 128 + 14 * 256 + 3 * 512), 64 * 64 + 2 * 64
    assert sum(p.numel() for p in ir50.parameters()) == stem + body + head - middle_bn - first_shortcut


def test_the_size_of_the_released_network():
    with torch.device("meta"):
        assert sum(p.numel() for p in create_backbone("mobilenet_v1", 128).parameters()) == 9_642_880


@pytest.mark.parametrize(("size", "cells"), [(64, 16), (96, 36), (16, 1), (56, 16), (17, 4)])
def test_only_the_head_depends_on_the_image_size(size, cells):
    with torch.device("meta"):
        assert create_backbone("iresnet18", 128, size).fc.weight.shape == (128, 512 * cells)
        assert create_backbone("ir50", 128, size).output_layer[3].weight.shape == (128, 512 * cells)
        side = math.isqrt(cells)
        assert create_backbone("mobilefacenet", 128, size).conv_6dw7_7.conv2d.weight.shape == (512, 1, side, side)


def test_iresnet_features_weight_does_not_train():
    for name in ("iresnet_small", "iresnet18"):
        backbone = create_backbone(name, 16, 32)
        assert not backbone.features.weight.requires_grad
        assert bool((backbone.features.weight == 1).all())
        fixed = [key for key, parameter in backbone.named_parameters() if not parameter.requires_grad]
        assert fixed == ["features.weight"]
    assert all(parameter.requires_grad for parameter in create_backbone("mobilefacenet", 16, 32).parameters())


# Numbers: whole networks in NumPy, float64, in the order of the papers

BLOCKS, WIDTHS = (2, 1, 3, 1), (4, 6, 6, 8)
FAMILIES = {
    "iresnet": (
        lambda **o: IResNet(BLOCKS, WIDTHS, **o),
        lambda tape, x: networks._iresnet(tape, x, BLOCKS, WIDTHS, 16),
    ),
    "ir": (lambda **o: IR(BLOCKS, **o), lambda tape, x: networks._ir(tape, x, BLOCKS, False, 16)),
    "ir_se": (
        lambda **o: IR(BLOCKS, squeeze_excite=True, **o),
        lambda tape, x: networks._ir(tape, x, BLOCKS, True, 16),
    ),
    "mobilefacenet": (MobileFaceNet, lambda tape, x: networks._mobilefacenet(tape, x, 16)),
    "mobilenet_v1": (MobileNetV1, lambda tape, x: networks._mobilenet_v1(tape, x, 16)),
}


def small(family, **options):
    """A net of the family with every kind of block it has."""
    return FAMILIES[family][0](**{"embedding_size": 16, "image_size": 32, **options})


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_numbers_as_numpy(family, training):
    backbone = small(family, dropout=0.0).double().train(training)
    arrays = random_arrays(to_canonical(backbone))
    from_canonical(backbone, arrays)
    x = images(6, 32).double()
    tape = networks.Tape(dict(arrays), training=training)
    expected = FAMILIES[family][1](tape, networks.Value(x.numpy())).data
    np.testing.assert_allclose(backbone(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    after = to_canonical(backbone)
    assert after.keys() == tape.arrays.keys()
    for name, array in tape.arrays.items():
        np.testing.assert_allclose(after[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


# Behaviour


@pytest.mark.parametrize("name", RUN_AT_112)
def test_forward_in_both_modes_and_sizes(name):
    for size in (112, 64):
        backbone = create_backbone(name, 32, size)
        with torch.no_grad():
            for training in (True, False):
                embeddings = backbone.train(training)(images(2, size))
                assert embeddings.shape == (2, 32)
                assert embeddings.dtype == torch.float32
                assert bool(embeddings.isfinite().all())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_that_trains_gets_a_gradient(family):
    backbone = small(family, image_size=32)
    backbone(images(4, 32)).square().sum().backward()
    without = [key for key, parameter in backbone.named_parameters() if parameter.grad is None]
    assert without == (["features.weight"] if family == "iresnet" else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_prelu_is_pytorchs_to_the_bit(dtype, layout):
    """Weights above 1 and below 0, inputs of 0; under autocast too, where weight and input differ in dtype."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 7, dtype=dtype).to(memory_format=layout)
    x[0, :, 0] = 0
    results = []
    for kind in (PReLU, nn.PReLU):
        layer = kind(5).to(torch.float32 if dtype == torch.bfloat16 else dtype)
        layer.weight.data = layer.weight.data.new_tensor([0.25, 1.5, -0.5, 0.0, 1.0])
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = layer(leaf)
        y.backward(torch.arange(1, y.numel() + 1).reshape(y.shape).to(y.dtype, memory_format=layout) / 100)
        results.append((y, leaf.grad, layer.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def of_one_image(layer):
    return lambda weight, x: torch.func.functional_call(layer, {"weight": weight}, (x[None],)).pow(3).sum()


def gradient_penalty(layer, x):
    gradients = torch.autograd.grad(layer(x).pow(3).sum(), (x, layer.weight), create_graph=True)
    return sum(gradient.square().sum() for gradient in gradients)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda layer, x: torch.jit.trace(layer, x)(2 * x), id="trace"),
        pytest.param(
            lambda layer, x: torch.func.vmap(torch.func.grad(of_one_image(layer), (0, 1)), (None, 0))(layer.weight, x),
            id="vmap-of-grad",
        ),
        pytest.param(lambda layer, x: torch.func.hessian(of_one_image(layer))(layer.weight, x[0]), id="hessian"),
        pytest.param(
            lambda layer, x: torch.autograd.grad(gradient_penalty(layer, x), (x, layer.weight)), id="double-backward"
        ),
    ],
)
def test_prelu_is_transformed_like_pytorchs(use):
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64).requires_grad_()
    results = []
    for kind in (PReLU, nn.PReLU):
        layer = kind(5).double()
        layer.weight.data = layer.weight.data.new_tensor([0.25, 1.5, -0.5, 0.0, 1.0])
        results.append(use(layer, x))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_traced_prelu_can_be_saved():
    torch.jit.save(torch.jit.trace(PReLU(5), torch.randn(2, 5, 4, 4)), io.BytesIO())


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_last_is_the_same_network(family):
    backbone = small(family, image_size=48).eval().double()
    x = images(2, 48).double()
    expected = backbone(x)
    before = to_canonical(backbone)
    backbone.to(memory_format=torch.channels_last)
    torch.testing.assert_close(backbone(x.to(memory_format=torch.channels_last)), expected, rtol=1e-9, atol=1e-9)
    for key, array in to_canonical(backbone).items():
        np.testing.assert_array_equal(array, before[key])
        assert array.flags.c_contiguous


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_stays_close(family):
    backbone = small(family, image_size=48, dropout=0.0).to(memory_format=torch.channels_last)
    x = images(8, 48).to(memory_format=torch.channels_last)
    backbone(x)
    with torch.no_grad():
        expected = backbone.eval()(x)
        with torch.autocast("cpu", torch.bfloat16):
            got = backbone(x).float()
    assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.99
    with torch.autocast("cpu", torch.bfloat16):
        backbone.train()(x).float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in backbone.parameters() if p.requires_grad)
