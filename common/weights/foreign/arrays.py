"""Arrays of a file that are described but not read yet, so that they can be checked before they take memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np

from common.io.pickles import Data, Items, Slice, Unexpected, text

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
DEPTH = 3  # dicts within dicts that are searched for weights


@dataclass(frozen=True)
class ForeignArray:
    """An array of a foreign file.

    Attributes:
        shape: as the file says.
        dtype: one of `ITEM_BYTES`, as the file says.
        read: returns the values in that shape and dtype (bfloat16 as float32); raises ValueError if they are not there.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


class ForeignFile(NamedTuple):
    """The contents of a file.

    Attributes:
        kind: name of the format, for people.
        groups: its dicts of arrays by name; one of them holds the weights of the network.
    """

    kind: str
    groups: list[dict[str, ForeignArray]]


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
    """Tell whether a value from a file is a tuple of sizes, or of strides, that an array can have."""
    sizes = type(value) is tuple and len(value) <= MOST_DIMENSIONS
    return sizes and all(type(size) is int and 0 <= size < 2**63 for size in value)


def item_count(shape: tuple[int, ...]) -> int:
    """Count the numbers in an array of that shape."""
    return math.prod(shape)
