"""Jittor's `.pkl`: a pickle of name to array, and behind it the SHA-1 of the pickle and the 8 bytes `HCAJSLHD`.

`Module.save` and `jittor.save` write each Var as a call of its class with a NumPy array; plain pickles of NumPy
arrays, without the hash, are read too. Followed by hand (`common.io.pickles`). Facts: jittor/__init__.py (safepickle)
and NumPy's `__reduce__` of arrays.
"""

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.io.pickles import Built, Call, Data, Items, Slice, Unexpected, content, follow, text
from common.weights.foreign.arrays import ITEM_BYTES, ForeignArray, ForeignFile, decode, is_shape, item_count

TRAILER = b"HCAJSLHD"
VARS = ("jittor.Var", "jittor_core.Var", "jittor.jittor_core.Var")  # 1.3.11 writes the last
_NUMPY = ("numpy.core.multiarray.", "numpy._core.multiarray.", "numpy.core.numeric.", "numpy._core.numeric.")
FUNCTIONS = frozenset(
    {
        *VARS,
        "collections.OrderedDict",
        "_codecs.encode",
        "numpy.dtype",
        *(module + name for module in _NUMPY for name in ("_reconstruct", "_frombuffer")),
    }
)
DTYPES = {"f2": "float16", "f4": "float32", "f8": "float64", "i4": "int32", "i8": "int64", "u1": "uint8", "b1": "bool"}
DEPTH = 3  # dicts within dicts that are searched for weights


def open_pickle(path: Path, data: mmap.mmap) -> ForeignFile:
    """Open a pickle of name to array.

    Raises:
        ValueError: it is damaged, or holds something else; nothing in it was executed.
    """
    hashed = data[-len(TRAILER) :] == TRAILER
    end = len(data) - len(TRAILER) - 20 if hashed else len(data)
    if hashed and (end < 0 or hashlib.sha1(memoryview(data)[:end]).digest() != data[end : end + 20]):
        raise ValueError(f"{path}: its hash does not match what it holds; copy or download it again")
    try:
        value, stop = follow(data, FUNCTIONS)
        if stop != end:
            raise Unexpected(f"{end - stop} bytes behind the pickle")
        return ForeignFile("Jittor" if hashed else "pickle of arrays", list(_groups(value, data)))
    except Unexpected as error:
        raise ValueError(f"{path}: expected a dict of arrays, found {error}; nothing in it was executed") from None


class _Dtype(NamedTuple):
    name: str
    big_endian: bool


def _groups(value: Any, data: Data, depth: int = 0) -> Iterator[dict[str, ForeignArray]]:
    if type(value) is not Items:
        if depth == 0:
            raise Unexpected("something else")
        return
    found = {}
    for key, item in value:
        if isinstance(item, Call) and item.function in VARS and len(item.arguments) == 1:
            item = item.arguments[0]
        if isinstance(key, Slice) and isinstance(item, Call | Built):
            name = text(data, key)
            if name in found:
                raise Unexpected(f"{name!r} twice")
            found[name] = _array(item, data)
        elif depth < DEPTH:
            yield from _groups(item, data, depth + 1)
    if found:
        yield found


def _array(value: Call | Built, data: Data) -> ForeignArray:
    """From NumPy's two ways to pickle an array."""
    if isinstance(value, Built) and value.made_by.function.endswith("._reconstruct"):
        state = value.state  # version, shape, dtype, is_fortran, bytes
        if type(state) is tuple and len(state) == 5:
            return _checked(state[4], state[1], state[2], bool(state[3]), data)
    elif isinstance(value, Call) and value.function.endswith("._frombuffer") and len(value.arguments) == 4:
        raw, dtype, shape, order = value.arguments
        return _checked(raw, shape, dtype, text(data, order) == "F", data)
    raise Unexpected("something else than an array")


def _checked(raw: Any, shape: Any, dtype: Any, is_fortran: bool, data: Data) -> ForeignArray:
    kind = _dtype(dtype, data)
    if not is_shape(shape):
        raise Unexpected("an array whose shape is no row of sizes")
    if not isinstance(raw, Slice):
        raise Unexpected("an array without its bytes")
    size = item_count(shape) * ITEM_BYTES[kind.name]
    if raw.stop - raw.start < size or (not raw.is_text and raw.stop - raw.start != size):  # text takes up to twice that
        raise Unexpected(f"{raw.stop - raw.start} bytes for an array of {size}")

    def values() -> np.ndarray:
        numbers = decode(content(data, raw), kind.name, kind.big_endian)
        return numbers.reshape(shape, order="F" if is_fortran else "C")

    return ForeignArray(shape, kind.name, values)


def _dtype(value: Any, data: Data) -> _Dtype:
    """`numpy.dtype(name, ...)`, and its state (version, byte order, ...)."""
    made_by, state = (value.made_by, value.state) if isinstance(value, Built) else (value, None)
    if not isinstance(made_by, Call) or made_by.function != "numpy.dtype" or not made_by.arguments:
        raise Unexpected("an array without a dtype")
    name = text(data, made_by.arguments[0])
    if name not in DTYPES:
        raise Unexpected(f"an array of dtype {name!r}")
    order = text(data, state[1]) if type(state) is tuple and len(state) > 1 else "|"
    return _Dtype(DTYPES[name], order == ">")
