"""The backbones against descriptions written independently of them: lists of names and shapes, and plain NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from common.tests.backend_checks.backbones import *  # noqa: F403
from common.tests.published_networks import published_shapes
from pytorch_impl.backbones import BACKBONES, create_backbone
from pytorch_impl.backbones._prelu import PReLU
from pytorch_impl.backbones.ir import IR
from pytorch_impl.backbones.iresnet import IResNet
from pytorch_impl.backbones.mobilefacenet import MobileFaceNet
from pytorch_impl.checkpoint import from_canonical, named_tensors, to_canonical

RUN_AT_112 = ("iresnet_small", "iresnet18", "iresnet50", "ir50", "ir_se50", "mobilefacenet")


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


class Layers:
    """Layers in NumPy on canonical arrays. In training, `updated` collects the new running statistics."""

    def __init__(self, arrays, training):
        self.arrays, self.training, self.updated = arrays, training, {}

    def conv(self, name, x, stride=1, padding=0, groups=1):
        weight = self.arrays[f"{name}.weight"]
        x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
        if groups == 1:
            return np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        return np.einsum("nchwkl,ckl->nchw", windows, weight[:, 0])

    def bn(self, name, x, eps=1e-5):
        weight, bias, mean, var = (
            self.arrays[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        axes, shape = (0, *range(2, x.ndim)), (1, -1, *[1] * (x.ndim - 2))
        if self.training:
            count = x.size // x.shape[1]
            self.updated[f"{name}.running_mean"] = 0.9 * mean + 0.1 * x.mean(axes)
            self.updated[f"{name}.running_var"] = 0.9 * var + 0.1 * x.var(axes) * count / (count - 1)
            mean, var = x.mean(axes), x.var(axes)
        mean, var, weight, bias = (value.reshape(shape) for value in (mean, var, weight, bias))
        return (x - mean) / np.sqrt(var + eps) * weight + bias

    def prelu(self, name, x):
        return np.where(x > 0, x, self.arrays[f"{name}.weight"].reshape(1, -1, 1, 1) * x)

    def linear(self, name, x):
        return x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]


def numpy_iresnet(net, x, blocks):
    x = net.prelu("prelu", net.bn("bn1", net.conv("conv1", x, padding=1)))
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            here, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
            y = net.bn(f"{here}.bn1", x)
            y = net.conv(f"{here}.conv1", y, padding=1)
            y = net.bn(f"{here}.bn2", y)
            y = net.prelu(f"{here}.prelu", y)
            y = net.conv(f"{here}.conv2", y, stride, padding=1)
            y = net.bn(f"{here}.bn3", y)
            if block == 0:
                x = net.bn(f"{here}.downsample.1", net.conv(f"{here}.downsample.0", x, stride))
            x = x + y
    x = net.bn("bn2", x).reshape(len(x), -1)
    return net.bn("features", net.linear("fc", x))


def numpy_ir(net, x, blocks, widths, squeeze_excite):
    x = net.prelu("input_layer.2", net.bn("input_layer.1", net.conv("input_layer.0", x, padding=1)))
    position, in_width = itertools.count(), widths[0]
    for count, width in zip(blocks, widths, strict=True):
        for block in range(count):
            here, stride = f"body.{next(position)}", 2 if block == 0 else 1
            y = net.bn(f"{here}.res_layer.0", x)
            y = net.conv(f"{here}.res_layer.1", y, padding=1)
            y = net.prelu(f"{here}.res_layer.2", y)
            y = net.conv(f"{here}.res_layer.3", y, stride, padding=1)
            y = net.bn(f"{here}.res_layer.4", y)
            if squeeze_excite:
                gate = y.mean((2, 3), keepdims=True)
                gate = np.maximum(net.conv(f"{here}.res_layer.5.fc1", gate), 0)
                y = y / (1 + np.exp(-net.conv(f"{here}.res_layer.5.fc2", gate)))
            if in_width == width:
                x = x[:, :, ::stride, ::stride]
            else:
                x = net.bn(f"{here}.shortcut_layer.1", net.conv(f"{here}.shortcut_layer.0", x, stride))
            x, in_width = x + y, width
    x = net.bn("output_layer.0", x).reshape(len(x), -1)
    return net.bn("output_layer.4", net.linear("output_layer.3", x))


def numpy_mobilefacenet(net, x):
    def layer(name, x, activation=True, **options):
        x = net.bn(f"{name}.batchnorm", net.conv(f"{name}.conv2d", x, **options), eps=1e-3)
        return net.prelu(f"{name}.relu", x) if activation else x

    def bottleneck(name, x, inside, stride=1):
        x = layer(f"{name}.conv_sep", x)
        x = layer(f"{name}.conv_dw", x, stride=stride, padding=1, groups=inside)
        return layer(f"{name}.conv_proj", x, activation=False)

    def residuals(name, x, inside, count):
        for block in range(count):
            x = x + bottleneck(f"{name}.model.block{block}", x, inside)
        return x

    x = layer("conv_2_dw", layer("conv_1", x, stride=2, padding=1), padding=1, groups=64)
    x = residuals("res_3", bottleneck("dconv_23", x, 128, stride=2), 128, 4)
    x = residuals("res_4", bottleneck("dconv_34", x, 256, stride=2), 256, 6)
    x = residuals("res_5", bottleneck("dconv_45", x, 512, stride=2), 256, 2)
    x = layer("conv_6dw7_7", layer("conv_6sep", x), activation=False, groups=512)
    return net.bn("fc1", net.linear("pre_fc1", x.reshape(len(x), -1)), eps=2e-5)


def random_arrays(backbone, seed=0):
    """Canonical arrays with nothing at its neutral value, and variances so small that eps shows."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, tensor in named_tensors(backbone).items():
        shape = tuple(tensor.shape)
        if len(shape) > 1:
            arrays[name] = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("running_var"):
            arrays[name] = rng.uniform(0.2, 0.5, shape)
        else:
            arrays[name] = rng.uniform(0.2, 0.8, shape)
    return arrays


IR_SIZES = {"blocks": (2, 1, 3, 1), "widths": (16, 32, 32, 48)}  # a stage that keeps the width: strided shortcut

FAMILIES = {
    "iresnet": (
        lambda **o: IResNet((2, 1, 3, 1), (4, 6, 6, 8), **o),
        lambda net, x: numpy_iresnet(net, x, (2, 1, 3, 1)),
    ),
    "ir": (lambda **o: IR(**IR_SIZES, **o), lambda net, x: numpy_ir(net, x, **IR_SIZES, squeeze_excite=False)),
    "ir_se": (
        lambda **o: IR(**IR_SIZES, squeeze_excite=True, **o),
        lambda net, x: numpy_ir(net, x, **IR_SIZES, squeeze_excite=True),
    ),
    "mobilefacenet": (MobileFaceNet, numpy_mobilefacenet),
}


def small(family, **options):
    """A net of the family with every kind of block it has."""
    return FAMILIES[family][0](**{"embedding_size": 16, "image_size": 32, **options})


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_numbers_as_numpy(family, training):
    backbone = small(family, dropout=0.0).double().train(training)
    arrays = random_arrays(backbone)
    from_canonical(backbone, arrays)
    x = images(6, 32).double()
    net = Layers(arrays, training)
    expected = FAMILIES[family][1](net, x.numpy())
    np.testing.assert_allclose(backbone(x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    after = to_canonical(backbone)
    for name, array in arrays.items():
        np.testing.assert_allclose(after[name], net.updated.get(name, array), rtol=1e-9, atol=1e-12, err_msg=name)


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
