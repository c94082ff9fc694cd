"""Jittor's `.pkl`: a pickle of a dict of arrays, then the SHA-1 of the pickle, then the 8 bytes `HCAJSLHD`.

`Module.save` and `jittor.save` write each Var as a call of its class with a NumPy array. Plain pickles of NumPy
arrays, without the hash, are read too. Nothing is called (`common.io.pickles`). Source of the layout:
jittor/__init__.py (safepickle) and NumPy's `__reduce__` of arrays.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from common.io import pickles
from common.io.files import FileBytes
from common.io.pickles import Built, Call, Data, Slice, Unexpected, text
from common.weights.foreign.arrays import ITEM_BYTES, ForeignArray, ForeignFile, decode, groups, is_shape

TRAILER = b"HCAJSLHD"
VARS = ("jittor.Var", "jittor_core.Var", "jittor.jittor_core.Var")  # 1.3.11 writes the last
FUNCTIONS = pickles.NUMPY_FUNCTIONS | {*VARS, "collections.OrderedDict"}
DTYPES = {"f2": "float16", "f4": "float32", "f8": "float64", "i4": "int32", "i8": "int64", "u1": "uint8", "b1": "bool"}


def open_pickle(path: Path, data: FileBytes) -> ForeignFile:
    """Open a pickle of a dict of arrays.

    Raises:
        ValueError: it is damaged or holds something else; nothing in it was executed.
    """
    hashed = data[-len(TRAILER) :] == TRAILER
    end = len(data) - len(TRAILER) - 20 if hashed else len(data)
    if hashed and (end < 0 or _sha1(data, end) != data[end : end + 20]):
        raise ValueError(f"{path}: its hash does not match its contents; copy or download it again")
    try:
        value, stop = pickles.follow(data, FUNCTIONS)
        if stop != end:
            raise Unexpected(f"{end - stop} bytes behind the pickle")
        return ForeignFile("Jittor" if hashed else "pickle of arrays", list(groups(data, value, _array)))
    except Unexpected as error:
        raise ValueError(f"{path}: expected a dict of arrays, found {error}; nothing in it was executed") from None


def _sha1(data: FileBytes, end: int, block: int = 2**20) -> bytes:
    digest = hashlib.sha1()
    for start in range(0, end, block):
        digest.update(data[start : min(end, start + block)])
    return digest.digest()


def _array(value: Any, data: Data) -> ForeignArray | None:
    """Read what an entry says of its array, None if it is no object; a Var is a call with an array."""
    if isinstance(value, Call) and value.function in VARS and len(value.arguments) == 1:
        value = value.arguments[0]
    if not isinstance(value, Call | Built):
        return None
    array = pickles.numpy_array(data, value)
    if array is None:
        raise Unexpected("something else than an array")
    raw, shape, dtype, is_fortran = array
    name, big_endian = _dtype(dtype, data)
    if not is_shape(shape):
        raise Unexpected("an array whose shape is no row of sizes")
    if not isinstance(raw, Slice):
        raise Unexpected("an array without its bytes")
    size, length = math.prod(shape) * ITEM_BYTES[name], raw.stop - raw.start
    if length < size or (not raw.is_text and length != size):  # as text, bytes take up to twice their number
        raise Unexpected(f"{length} bytes for an array of {size}")

    def values() -> np.ndarray:
        return decode(pickles.content(data, raw), name, big_endian).reshape(shape, order="F" if is_fortran else "C")

    return ForeignArray(shape, name, values)


def _dtype(value: Any, data: Data) -> tuple[str, bool]:
    """Read the name of a dtype and whether it is big-endian: `numpy.dtype(name)` with a state (version, order, ...)."""
    name = pickles.numpy_dtype(data, value)
    if name is None:
        raise Unexpected("an array without a dtype")
    if name not in DTYPES:
        raise Unexpected(f"an array of dtype {name!r}")
    state = value.state if isinstance(value, Built) else None
    return DTYPES[name], type(state) is tuple and len(state) > 1 and text(data, state[1]) == ">"
