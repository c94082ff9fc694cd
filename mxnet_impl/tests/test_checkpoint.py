"""Canonical arrays in and out of MXNet blocks, and the checkpoints that others published."""

import numpy as np
import pytest
from mxnet import nd
from mxnet.gluon import nn

from common.weights.initialisation import ParameterSpec
from mxnet_impl.backbones import create_backbone
from mxnet_impl.checkpoint import from_canonical, parameter_specs, to_canonical
from mxnet_impl.losses.margin_heads import SoftmaxHead

FAMILIES = ("iresnet_small", "ir_se50", "mobilefacenet")


def network(name, dtype="float32", **options):
    block = create_backbone(name, 16, 32, **options)
    block.initialize()
    block.cast(dtype)
    return block


def random_arrays(block, seed=0):
    """No value neutral, none equal to another; running variances positive, activations neither tiny nor huge."""
    random = np.random.default_rng(seed)

    def draw(shape):
        if len(shape) > 1:
            return random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return random.random(shape) + 0.1

    return {name: draw(array.shape).astype(array.dtype) for name, array in to_canonical(block).items()}


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
    x = nd.random.normal(shape=(2, 3, 32, 32), dtype=dtype)
    assert np.array_equal(source(x).asnumpy(), target(x).asnumpy())


def test_arrays_are_copies():
    block = network("iresnet_small")
    arrays = to_canonical(block)
    before = {name: array.copy() for name, array in arrays.items()}
    from_canonical(block, arrays)
    for array in arrays.values():
        array += 1
    assert same(to_canonical(block), before)


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
    block = network("iresnet_small")
    before = to_canonical(block)
    arrays = {name: array + 1 for name, array in before.items()}
    damage(arrays)
    with pytest.raises(ValueError, match=message):
        from_canonical(block, arrays)
    assert same(to_canonical(block), before)


def test_heads():
    assert parameter_specs(SoftmaxHead(8, 5)) == {
        "class_weight": ParameterSpec("class_weight", (5, 8)),
        "bias": ParameterSpec("bias", (5,)),
    }


def test_a_layer_that_nobody_described_is_refused():
    layers = nn.HybridSequential()
    layers.add(nn.Dense(3, in_units=2), nn.LayerNorm(in_channels=3))
    with pytest.raises(ValueError, match=r"1.gamma: expected a parameter listed in KINDS, got LayerNorm.gamma"):
        parameter_specs(layers)
