"""Canonical arrays in and out of PyTorch modules, and the checkpoints that others published."""

import numpy as np
import pytest
import torch
from torch import nn

from common.weights.initialisation import ParameterSpec, draw_parameters
from pytorch_impl.backbones import BACKBONES, create_backbone
from pytorch_impl.backbones._prelu import PReLU
from pytorch_impl.checkpoint import from_arrays, from_canonical, named_tensors, parameter_specs, to_arrays, to_canonical
from pytorch_impl.losses.margin_heads import SoftmaxHead
from pytorch_impl.losses.sface import SFaceHead
from pytorch_impl.tests.test_backbones import FAMILIES, small


def randomise(module, seed=0):
    """No value neutral, none equal to another; running variances positive."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


# Round trip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_exact(family, dtype):
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


def test_arrays_are_copies():
    backbone = create_backbone("iresnet_small", 16, 32)
    arrays = to_canonical(backbone)
    before = {name: array.copy() for name, array in arrays.items()}
    randomise(backbone)
    assert same(arrays, before)
    from_canonical(backbone, arrays)
    for array in arrays.values():
        array += 1
    assert same(to_canonical(backbone), before)


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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: a.pop("fc.bias"), "fc.bias: missing"),
        (lambda a: a.update({"fc.scale": a["fc.bias"]}), "fc.scale: unexpected"),
        (
            lambda a: a.update({"fc.weight": a["fc.weight"][:, :-1]}),
            r"fc.weight: expected float32 \(16, 1024\), got float32 \(16, 1023\)",
        ),
        (
            lambda a: a.update({"fc.weight": a["fc.weight"].reshape(-1)}),
            r"fc.weight: expected float32 \(16, 1024\), got float32 \(16384,\)",
        ),
        (lambda a: a.update({"fc.bias": a["fc.bias"].astype(np.float64)}), r"fc.bias: .* got float64 \(16,\)"),
        (lambda a: a.update({"fc.bias": a["fc.bias"].astype(">f4")}), r"fc.bias: .* got >f4 \(16,\)"),
        (lambda a: a.update({"fc.bias": a["fc.bias"].tolist()}), "fc.bias: .* got list"),
        (lambda a: a["fc.bias"].__setitem__(7, np.nan), "fc.bias: holds NaN or infinity"),
        (lambda a: a["fc.weight"].__setitem__((3, 5), -np.inf), "fc.weight: holds NaN or infinity"),
        (lambda a: a["bn1.running_var"].__setitem__(0, -1e-3), "bn1.running_var: expected variances, got -0.001"),
    ],
)
def test_arrays_that_do_not_fit_change_nothing(damage, message):
    backbone = create_backbone("iresnet_small", 16, 32)
    before = to_canonical(backbone)
    arrays = {name: array + 1 for name, array in before.items()}
    damage(arrays)
    with pytest.raises(ValueError, match=message):
        from_canonical(backbone, arrays)
    assert same(to_canonical(backbone), before)


def test_only_the_first_few_problems_are_named():
    with pytest.raises(ValueError, match=r"conv1.weight: missing; .* and \d+ more$") as error:
        from_canonical(create_backbone("iresnet_small", 16, 32), {})
    assert len(str(error.value)) < 400


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


def test_heads():
    assert parameter_specs(SFaceHead(8, 5)) == {"class_weight": ParameterSpec("class_weight", (5, 8))}
    assert parameter_specs(SoftmaxHead(8, 5)) == {
        "class_weight": ParameterSpec("class_weight", (5, 8)),
        "bias": ParameterSpec("bias", (5,)),
    }


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
