"""Canonical arrays in and out of Jittor modules, and the checkpoints that others published."""

import jittor as jt
import numpy as np
import pytest
from jittor import nn

from common.weights.initialisation import ParameterSpec
from jittor_impl.backbones import create_backbone
from jittor_impl.checkpoint import from_canonical, parameter_specs, to_arrays, to_canonical
from jittor_impl.losses.margin_heads import SoftmaxHead

FAMILIES = ("iresnet_small", "ir_se50", "mobilefacenet")


def network(name, dtype="float32", **options):
    module = create_backbone(name, 16, 32, **options)
    if dtype == "float64":
        module.float64()
    return module


def random_arrays(module, seed=0):
    """No value neutral, none equal to another; running variances positive."""
    random = np.random.default_rng(seed)
    return {
        name: (random.random(array.shape) + 0.1).astype(array.dtype) for name, array in to_canonical(module).items()
    }


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_round_trip_is_exact(name, dtype):
    source, target = network(name, dtype), network(name, dtype)
    arrays = random_arrays(source)
    from_canonical(source, {name: np.asfortranarray(array) for name, array in arrays.items()})
    from_canonical(target, to_canonical(source))
    assert same(to_canonical(target), arrays)
    assert {array.dtype for array in to_canonical(target).values()} == {np.dtype(dtype)}
    assert all(array.flags.c_contiguous for array in to_canonical(target).values())


def test_arrays_are_copies():
    module = network("iresnet_small")
    arrays = to_canonical(module)
    before = {name: array.copy() for name, array in arrays.items()}
    from_canonical(module, arrays)
    for array in arrays.values():
        array += 1
    assert same(to_canonical(module), before)


def test_loading_keeps_what_trains():
    """Assigning to a Var can turn a running statistic or a fixed weight into a parameter."""

    def fixed(module):
        return {name for name, tensor in module.state_dict().items() if tensor.is_stop_grad()}

    module = network("iresnet_small")
    expected = {name for name in to_canonical(module) if ".running_" in name} | {"features.weight"}
    assert fixed(module) == expected
    from_canonical(module, random_arrays(module))
    assert fixed(module) == expected


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: a.pop("fc.bias"), "fc.bias: missing"),
        (lambda a: a.update({"fc.scale": a["fc.bias"]}), "fc.scale: unexpected"),
        (lambda a: a.update({"fc.weight": a["fc.weight"][:, :-1]}), r"fc.weight: expected float32 \(16, 1024\), got"),
        (lambda a: a.update({"fc.bias": a["fc.bias"].astype(np.float64)}), r"fc.bias: .* got float64 \(16,\)"),
        (lambda a: a["fc.bias"].__setitem__(7, np.nan), "fc.bias: holds NaN or infinity"),
        (lambda a: a["bn1.running_var"].__setitem__(0, -1e-3), "bn1.running_var: expected variances, got -0.001"),
    ],
)
def test_arrays_that_do_not_fit_change_nothing(damage, message):
    module = network("iresnet_small")
    before = to_canonical(module)
    arrays = {name: array + 1 for name, array in before.items()}
    damage(arrays)
    with pytest.raises(ValueError, match=message):
        from_canonical(module, arrays)
    assert same(to_canonical(module), before)


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="x: expected float32 or float64, got int32"):
        to_arrays({"x": jt.zeros(3, "int32")})


def test_heads():
    assert parameter_specs(SoftmaxHead(8, 5)) == {
        "class_weight": ParameterSpec("class_weight", (5, 8)),
        "bias": ParameterSpec("bias", (5,)),
    }


def test_a_layer_that_nobody_described_is_refused():
    with pytest.raises(ValueError, match=r"1.weight: expected a parameter listed in KINDS, got LayerNorm.weight"):
        parameter_specs(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
