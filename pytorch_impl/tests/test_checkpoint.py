"""Canonical arrays in and out of PyTorch modules, and the checkpoints that others published."""

import numpy as np
import pytest
import torch
from torch import nn

from common.tests.backend_checks.checkpoint import *  # noqa: F403
from common.tests.backend_checks.checkpoint import same
from common.weights.initialisation import draw_parameters
from pytorch_impl.backbones import BACKBONES, create_backbone
from pytorch_impl.backbones._prelu import PReLU
from pytorch_impl.checkpoint import from_arrays, from_canonical, named_tensors, parameter_specs, to_arrays, to_canonical
from pytorch_impl.losses.sface import SFaceHead
from pytorch_impl.tests.test_backbones import FAMILIES, small


def network(name, dtype="float32"):
    return create_backbone(name, 16, 32).to(getattr(torch, dtype))


def randomise(module, seed=0):
    """No value neutral, none equal to another; running variances positive."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)


# Round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_of_channels_last(family, dtype):
    source, target = (small(family).to(dtype) for _ in range(2))
    randomise(source)
    target.to(memory_format=torch.channels_last)
    arrays = to_canonical(source)
    from_canonical(target, arrays)
    for key, tensor in source.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert arrays[key].dtype == str(dtype).removeprefix("torch.")
            assert torch.equal(tensor, target.state_dict()[key]), key
    again = to_canonical(target)
    assert same(again, arrays)
    assert all(array.flags.c_contiguous for array in (*arrays.values(), *again.values()))
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    torch.testing.assert_close(source.eval()(x), target.eval()(x))


def test_counters_are_left_out_and_the_rest_is_there():
    backbone = create_backbone("mobilefacenet", 16, 32)
    names = set(to_canonical(backbone))
    assert names == {name for name in backbone.state_dict() if "num_batches_tracked" not in name}
    assert len(names) < len(backbone.state_dict())


@pytest.mark.filterwarnings("error")
def test_arrays_that_cannot_be_written_or_are_no_c_order_load():
    head = SFaceHead(6, 4)
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    read_only = np.frombuffer(values.tobytes(), np.float32).reshape(4, 6)
    for array in (read_only, np.asfortranarray(values), values[::-1].copy()[::-1]):
        randomise(head)
        from_canonical(head, {"class_weight": array})
        np.testing.assert_array_equal(head.class_weight.detach().numpy(), values)


def test_momentum_buffers_go_the_same_way():
    buffers = {"backbone.fc.weight": torch.randn(3, 4), "head.class_weight": torch.randn(5, 4)}
    arrays = to_arrays(buffers)
    empty = {name: torch.zeros_like(buffer) for name, buffer in buffers.items()}
    from_arrays(empty, arrays)
    assert all(torch.equal(empty[name], buffers[name]) for name in buffers)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"conv1.weight: expected float32 or float64, got torch.bfloat16"):
        to_canonical(create_backbone("iresnet_small", 16, 32).bfloat16())


# What the parameters are


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_of_every_backbone_has_its_kind(name):
    with torch.device("meta"):
        backbone = create_backbone(name)
    specs = parameter_specs(backbone)
    assert specs.keys() == named_tensors(backbone).keys()
    for key, module in backbone.named_modules():
        kinds = {
            nn.Conv2d: {"weight": "conv"},
            nn.Linear: {"weight": "linear", "bias": "bias"},
            PReLU: {"weight": "prelu"},
        }.get(type(module), {})
        if "BatchNorm" in type(module).__name__:
            kinds = {"weight": "bn_weight", "bias": "bn_bias", "running_mean": "bn_mean", "running_var": "bn_var"}
        for attribute, kind in kinds.items():
            assert specs.pop(f"{key}.{attribute}") == (kind, tuple(getattr(module, attribute).shape))
    assert not specs


def test_a_layer_that_nobody_described_is_refused():
    with pytest.raises(ValueError, match=r"1.weight: expected a parameter listed in KINDS, got LayerNorm.weight"):
        parameter_specs(nn.Sequential(nn.PReLU(3), nn.LayerNorm(3)))


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_values_load_and_give_sound_embeddings(family):
    backbone = small(family)
    arrays = draw_parameters(parameter_specs(backbone), seed=3)
    from_canonical(backbone, arrays)
    assert same(to_canonical(backbone), arrays)
    embeddings = backbone(torch.randn(8, 3, 32, 32))
    assert 0.1 < embeddings.std() < 10
