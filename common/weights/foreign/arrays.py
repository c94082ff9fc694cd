"""An array inside a file that is not read yet: what it says of itself can be checked before memory is taken."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np

ITEM_BYTES = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "bool": 1,
}
MOST_DIMENSIONS = 32  # of a NumPy array


@dataclass(frozen=True)
class ForeignArray:
    """An array of a foreign file.

    Attributes:
        shape: as its file says.
        dtype: one of `ITEM_BYTES`.
        read: gives the values in that shape and dtype (bfloat16 as float32); raises ValueError if they are not there.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class ForeignFile(NamedTuple):
    """What a file holds.

    Attributes:
        kind: the format, for people.
        groups: its dicts of name to array; the weights of a network are one of them.
    """

    kind: str
    groups: list[dict[str, ForeignArray]]


def decode(raw: bytes | memoryview, dtype: str, big_endian: bool = False) -> np.ndarray:
    """Numbers of one dtype of `ITEM_BYTES`, in one dimension; bfloat16 comes as float32.

    Raises:
        ValueError: the length is no multiple of an item's.
    """
    order: Literal[">", "<"] = ">" if big_endian else "<"
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(raw, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder(order)).astype(dtype)


def is_shape(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Whether something that a file holds is a row of sizes, or of strides, that an array can have."""
    sizes = type(value) is tuple and len(value) <= MOST_DIMENSIONS
    return sizes and all(type(size) is int and 0 <= size < 2**63 for size in value)


def item_count(shape: tuple[int, ...]) -> int:
    """Numbers in an array of that shape."""
    return math.prod(shape)
