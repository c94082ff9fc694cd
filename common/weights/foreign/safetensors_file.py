"""safetensors: u64 length of a header, the header in JSON, then the numbers of all arrays, little-endian.

    header   {NAME: {"dtype": "F32", "shape": [...], "data_offsets": [from, to]}, "__metadata__": {...}}

Format: https://github.com/huggingface/safetensors#format. Its library reads no bfloat16 into NumPy; this does.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.io.files import FileBytes
from common.weights.foreign.arrays import ITEM_BYTES, ForeignArray, ForeignFile, are_sizes, decode, is_shape

DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "BOOL": "bool"},
}
MOST_HEADER_BYTES = 2**24


def is_safetensors(data: FileBytes) -> bool:
    """Whether the file begins with the length of a header and its first brace."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def open_safetensors(path: Path, data: FileBytes) -> ForeignFile:
    """Open a file; raises a ValueError if it is damaged."""
    length = int.from_bytes(data[:8], "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"{path}: expected a header of at most {MOST_HEADER_BYTES} bytes, got {length}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a header in JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: expected a header that is an object, got {type(header).__name__}")
    start = 8 + length
    arrays = {name: _array(path, data, start, name, facts) for name, facts in header.items() if name != "__metadata__"}
    claimed = sum(math.prod(array.shape) * ITEM_BYTES[array.dtype] for array in arrays.values())
    if claimed > len(data) - start:
        raise ValueError(f"{path}: its arrays claim {claimed} bytes of {len(data) - start}; they overlap")
    return ForeignFile("safetensors", [arrays])


def _array(path: Path, data: FileBytes, start: int, name: str, facts: Any) -> ForeignArray:
    facts = facts if isinstance(facts, dict) else {}
    dtype = DTYPES.get(str(facts.get("dtype")))
    shape, offsets = (
        tuple(facts[key]) if isinstance(facts.get(key), list) else None for key in ("shape", "data_offsets")
    )
    if dtype is None or not is_shape(shape) or not are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{path}: {name}: expected a known dtype, shape and two data_offsets, got {str(facts)[:200]}")
    first, last = offsets
    size, there = math.prod(shape) * ITEM_BYTES[dtype], len(data) - start
    if last - first != size or last > there:
        raise ValueError(f"{path}: {name}: expected {size} bytes for {shape}, got {first} to {last} of {there}")
    return ForeignArray(shape, dtype, partial(_read, data, start + first, start + last, shape, dtype))


def _read(data: FileBytes, first: int, last: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return decode(data[first:last], dtype).reshape(shape)
