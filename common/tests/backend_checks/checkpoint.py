"""Canonical arrays in and out of every backend's modules.

A test file that imports this defines `network(name, dtype="float32")`: a backbone of 16-d embeddings of 32 pixels.
"""

import numpy as np
import pytest

from common.weights.initialisation import ParameterSpec

FAMILIES = ("iresnet_small", "ir_se50", "mobilefacenet", "mobilenet_v1")
NETWORKS = [(name, dtype) for name in FAMILIES for dtype in ("float32", "float64")]
NETWORKS.remove(("ir_se50", "float64"))  # 350 MB, and nothing that the others do not have


@pytest.fixture
def checkpoint(backend):
    return backend.module("checkpoint")


@pytest.fixture
def backbone(request):
    return request.module.network("iresnet_small")


def random_arrays(like, seed=0):
    """No value neutral, none equal to another; running variances positive, activations neither tiny nor huge."""
    random = np.random.default_rng(seed)

    def draw(shape):
        if len(shape) > 1:
            return random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return random.random(shape) + 0.1

    return {name: draw(array.shape).astype(array.dtype) for name, array in like.items()}


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("name", "dtype"), NETWORKS)
def test_round_trip_is_exact(checkpoint, request, name, dtype):
    source, target = (request.module.network(name, dtype) for _ in range(2))
    arrays = random_arrays(checkpoint.to_canonical(source))
    checkpoint.from_canonical(source, {name: np.asfortranarray(array) for name, array in arrays.items()})
    checkpoint.from_canonical(target, checkpoint.to_canonical(source))
    found = checkpoint.to_canonical(target)
    assert same(found, arrays)
    assert {array.dtype for array in found.values()} == {np.dtype(dtype)}
    assert all(array.flags.c_contiguous for array in found.values())


def test_arrays_are_copies(checkpoint, backbone):
    arrays = checkpoint.to_canonical(backbone)
    before = {name: array.copy() for name, array in arrays.items()}
    checkpoint.from_canonical(backbone, random_arrays(arrays))
    assert same(arrays, before)
    checkpoint.from_canonical(backbone, arrays)
    for array in arrays.values():
        array += 1
    assert same(checkpoint.to_canonical(backbone), before)


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
def test_arrays_that_do_not_fit_change_nothing(checkpoint, backbone, damage, message):
    before = checkpoint.to_canonical(backbone)
    arrays = {name: array + 1 for name, array in before.items()}
    damage(arrays)
    with pytest.raises(ValueError, match=message):
        checkpoint.from_canonical(backbone, arrays)
    assert same(checkpoint.to_canonical(backbone), before)


def test_only_the_first_few_problems_are_named(checkpoint, backbone):
    with pytest.raises(ValueError, match=r"conv1.weight: missing; .* and \d+ more$") as error:
        checkpoint.from_canonical(backbone, {})
    assert len(str(error.value)) < 400


def test_heads(backend, checkpoint):
    losses, class_weight = backend.module("losses"), ParameterSpec("class_weight", (5, 8))
    assert checkpoint.parameter_specs(losses.SFaceHead(8, 5)) == {"class_weight": class_weight}
    expected = {"class_weight": class_weight, "bias": ParameterSpec("bias", (5,))}
    assert checkpoint.parameter_specs(losses.SoftmaxHead(8, 5)) == expected
