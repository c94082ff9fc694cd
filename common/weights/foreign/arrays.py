"""Arrays of a file that are described but not read yet, so that they can be checked before they take memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np

from common.io.pickles import Data, Items, Slice, Unexpected, text

_INTEGERS = (f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_NUMPY_DTYPES = ("float16", "float32", "float64", *_INTEGERS, "bool")
ITEM_BYTES = {"bfloat16": 2, **{name: np.dtype(name).itemsize for name in _NUMPY_DTYPES}}
MOST_DIMENSIONS = 32  # of a NumPy array
DEPTH = 3  # dicts within dicts that are searched for weights


@dataclass(frozen=True)
class ForeignArray:
    """An array of a foreign file."""

    shape: tuple[int, ...]  # as the file says
    dtype: str  # one of `ITEM_BYTES`, as the file says
    read: Callable[[], np.ndarray]  # returns the values (bfloat16 as float32); raises ValueError if they are not there


class BatchNormFacts(NamedTuple):
    """Attributes of a BatchNorm. With fix_gamma, MXNet takes 1 in place of the stored gamma."""

    eps: float
    fix_gamma: bool


@dataclass(frozen=True)
class Symbol:
    """The facts of a graph (MXNet's `-symbol.json`, an ONNX model) that its weights do not hold."""

    batch_norms: dict[str, BatchNormFacts]  # attributes of each BatchNorm, by the layer's name
    pixel_mean: float | None  # of the network's own (pixel - mean) * scale; None where it has none
    pixel_scale: float | None  # as pixel_mean


class ForeignFile(NamedTuple):
    """The contents of a file."""

    kind: str  # name of the format
    groups: list[dict[str, ForeignArray]]  # its dicts of arrays by name; one of them holds the weights of the network
    symbol: Symbol | None = None  # of a file that holds it too


def groups(
    data: Data, value: Any, read_entry: Callable[[Any, Data], ForeignArray | None], depth: int = 0
) -> Iterator[dict[str, ForeignArray]]:
    """Find the dicts of a pickle that hold arrays: the value itself, and dicts inside it down to `DEPTH`.

    Args:
        data: the file.
        value: what `common.io.pickles.follow` made of it.
        read_entry: describes one entry of a dict as an array; returns None if the entry is something else.
        depth: of `value`.

    Raises:
        Unexpected: the value is no dict, a name stands twice in one dict, or `read_entry` refuses an entry.
    """
    if type(value) is not Items:
        if depth == 0:
            raise Unexpected("something else")
        return
    found: dict[str, ForeignArray] = {}
    for key, item in value:
        array = read_entry(item, data) if isinstance(key, Slice) else None
        if array is not None:
            name = text(data, key)
            if name in found:
                raise Unexpected(f"{name!r} twice")
            found[name] = array
        elif depth < DEPTH:
            yield from groups(data, item, read_entry, depth + 1)
    if found:
        yield found


def decode(raw: bytes | memoryview, dtype: str, big_endian: bool = False) -> np.ndarray:
    """Turn bytes into an array (n,) of a dtype of `ITEM_BYTES`; bfloat16 becomes float32.

    Raises:
        ValueError: the number of bytes is no multiple of an item's.
    """
    order: Literal[">", "<"] = ">" if big_endian else "<"
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(raw, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder(order)).astype(dtype)


def is_shape(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Tell whether a value from a file is a shape that an array can have; NumPy counts as if no size were 0."""
    return are_sizes(value) and math.prod(size or 1 for size in value) < 2**60


def are_sizes(value: Any) -> TypeGuard[tuple[int, ...]]:
    """Tell whether a value from a file is a tuple of sizes, of strides or of offsets."""
    sizes = type(value) is tuple and len(value) <= MOST_DIMENSIONS
    return sizes and all(type(size) is int and 0 <= size < 2**63 for size in value)
