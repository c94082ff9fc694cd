import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.weights.initialisation import Kind, ParameterSpec, draw_parameter, draw_parameters

SPECS = {
    "backbone.stem.weight": ParameterSpec("conv", (64, 32, 3, 3)),
    "backbone.depthwise.weight": ParameterSpec("conv", (2048, 1, 3, 3)),
    "backbone.fc.weight": ParameterSpec("linear", (128, 300)),
    "backbone.fc.bias": ParameterSpec("bias", (128,)),
    "backbone.bn.weight": ParameterSpec("bn_weight", (64,)),
    "backbone.bn.bias": ParameterSpec("bn_bias", (64,)),
    "backbone.bn.running_mean": ParameterSpec("bn_mean", (64,)),
    "backbone.bn.running_var": ParameterSpec("bn_var", (64,)),
    "backbone.prelu.weight": ParameterSpec("prelu", (64,)),
    "head.class_weight": ParameterSpec("class_weight", (500, 64)),
}


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("backbone.stem.weight", math.sqrt(2 / (64 * 9))),
        ("backbone.depthwise.weight", math.sqrt(2 / (2048 * 9))),
        ("backbone.fc.weight", math.sqrt(2 / 128)),
        ("head.class_weight", math.sqrt(2 / 500)),
    ],
)
def test_normal_kinds(name: str, std: float) -> None:
    values = draw_parameter(name, SPECS[name], seed=0)
    assert values.shape == SPECS[name].shape
    z = np.sort(values.ravel().astype(np.float64)) / std
    n = z.size
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.std() - 1) < 4 / math.sqrt(2 * n)
    # the largest gap between the empirical and the normal distribution (Kolmogorov-Smirnov), far below 1e-4 likely
    normal = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])
    assert np.abs(normal - np.arange(n) / n).max() < 2.3 / math.sqrt(n)


@pytest.mark.parametrize(
    ("kind", "value"), [("bn_weight", 1), ("bn_bias", 0), ("bn_mean", 0), ("bn_var", 1), ("prelu", 0.25), ("bias", 0)]
)
def test_constant_kinds(kind: Kind, value: float) -> None:
    values = draw_parameter("any", ParameterSpec(kind, (7,)), seed=5)
    assert values.dtype == np.float32
    assert values.tolist() == [value] * 7


@given(st.permutations(list(SPECS)), st.integers(0, 2**63 - 1))
def test_neither_order_nor_company_matters(order: list[str], seed: int) -> None:
    together = draw_parameters({name: SPECS[name] for name in order}, seed)
    assert list(together) == list(order)
    alone = draw_parameters({order[0]: SPECS[order[0]]}, seed)
    np.testing.assert_array_equal(together[order[0]], alone[order[0]])


def test_seed_and_name_key_the_stream() -> None:
    spec = ParameterSpec("linear", (8, 8))
    draws = [draw_parameter(name, spec, seed) for name in ("a", "b", "1 a") for seed in (0, 1, 11, 2**63 - 1)]
    assert len({draw.tobytes() for draw in draws}) == len(draws)
    np.testing.assert_array_equal(draws[0], draw_parameter("a", spec, 0))


def test_arrays_are_float32_and_own_their_memory() -> None:
    for name, values in draw_parameters(SPECS, 0).items():
        assert values.dtype == np.float32, name
        assert values.flags.c_contiguous, name
        assert values.flags.writeable, name


def test_the_stream_is_frozen() -> None:
    # published runs start from these bits: a change of key, generator or scaling must be a decision, not an accident
    values = draw_parameter("backbone.conv1.weight", ParameterSpec("conv", (2, 1, 1, 1)), seed=0)
    np.testing.assert_allclose(values.ravel(), [-0.6326594948768616, 0.6313700079917908], rtol=1e-6)


def test_class_weight_is_drawn_in_float32_without_copies() -> None:
    spec = ParameterSpec("class_weight", (20000, 128))
    draw_parameter("head.class_weight", ParameterSpec("class_weight", (2, 2)), 0)
    tracemalloc.start()
    values = draw_parameter("head.class_weight", spec, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.05 * values.nbytes


@pytest.mark.parametrize(
    ("spec", "seed", "message"),
    [
        (ParameterSpec("linear", (2, 2)), -1, "seed: expected at least 0, got -1"),
        (("dense", (2, 2)), 0, "w: expected a kind among conv, linear, .*, got 'dense'"),
        (ParameterSpec("conv", (2, 2)), 0, r"w: expected 4 positive sizes for conv, got shape \(2, 2\)"),
        (ParameterSpec("linear", (2,)), 0, r"w: expected 2 positive sizes for linear, got shape \(2,\)"),
        (
            ParameterSpec("class_weight", (0, 5)),
            0,
            r"w: expected 2 positive sizes for class_weight, got shape \(0, 5\)",
        ),
    ],
)
def test_bad_specs_are_refused(spec: ParameterSpec, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_parameter("w", spec, seed)
