"""Initial weights, drawn by NumPy so that every backend starts from the same bits.

A backend describes its parameters (`ParameterSpec` by canonical name), and `draw_parameters` draws them. Each tensor
has its own random stream, keyed by the run's seed and the tensor's name. So the order of the parameters does not
matter, a new layer changes no other, and a backbone starts with the same weights under every head.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np

Kind = Literal[
    "conv",  # (out, in / groups, height, width)
    "linear",  # (out, in)
    "class_weight",  # (classes, embedding size)
    "bn_weight",
    "bn_bias",
    "bn_mean",
    "bn_var",
    "prelu",
    "bias",
]

CONSTANTS: dict[Kind, float] = {
    "bn_weight": 1.0,
    "bn_bias": 0.0,
    "bn_mean": 0.0,
    "bn_var": 1.0,
    "prelu": 0.25,
    "bias": 0.0,
}


class ParameterSpec(NamedTuple):
    """Kind and canonical shape of a parameter or a running statistic."""

    kind: Kind
    shape: tuple[int, ...]


def draw_parameters(specs: Mapping[str, ParameterSpec], seed: int) -> dict[str, np.ndarray]:
    """Draw initial values, float32 and C-contiguous, in the order of `specs`; see `draw_parameter`."""
    return {name: draw_parameter(name, spec, seed) for name, spec in specs.items()}


def draw_parameter(name: str, spec: ParameterSpec, seed: int) -> np.ndarray:
    """Draw the initial value of one parameter, float32: a pure function of the arguments and of NumPy's version.

    Convolutions and linear layers are normal with standard deviation sqrt(2 / (out * kernel area)), class weights with
    sqrt(2 / classes). The other kinds are constant (`CONSTANTS`).

    Args:
        name: canonical, as in a checkpoint ("backbone.conv1.weight"); part of the key of the stream.
        spec: kind and shape.
        seed: seed of the run, at least 0.

    Raises:
        ValueError: the seed is negative, the kind is unknown, or the shape does not fit the kind.

    >>> draw_parameter("backbone.bn1.weight", ParameterSpec("bn_weight", (2,)), seed=0)
    array([1., 1.], dtype=float32)
    """
    kind, shape = spec
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    if kind not in get_args(Kind):
        raise ValueError(f"{name}: expected a kind among {', '.join(get_args(Kind))}, got {kind!r}")
    if kind in CONSTANTS:
        return np.full(shape, CONSTANTS[kind], np.float32)

    dimensions = 4 if kind == "conv" else 2
    if len(shape) != dimensions or min(shape) < 1:
        raise ValueError(f"{name}: expected {dimensions} positive sizes for {kind}, got shape {shape}")
    fan_out = shape[0] * math.prod(shape[2:])
    # drawn in float32 and scaled in place: float64 would double the memory of millions of classes
    values = _stream(name, seed).standard_normal(shape, dtype=np.float32)
    values *= np.float32(math.sqrt(2 / fan_out))
    return values


def _stream(name: str, seed: int) -> np.random.Generator:
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
