"""MXNet's `.params`, a list of named arrays (little-endian), and what a network's `-symbol.json` says about them.

    list     u64 0x112, u64 0, u64 count, the arrays, u64 count, then for each name u64 length, bytes
    array    u32 0xF993FAC9 (or ..CA), i32 storage (0: dense), shape, then unless the shape is empty:
             i32 device, i32 number, i32 dtype, the values
    shape    u32 dimensions, i64 each
    older    u32 0xF993FAC8, shape, ...; or u32 dimensions, u32 each, ...: both without storage

Source of the layout: NDArray::Save and NDArray::Load in src/ndarray/ndarray.cc of MXNet.
"""

import math
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.io.files import FileBytes, read_json
from common.weights.foreign.arrays import (
    ITEM_BYTES,
    MOST_DIMENSIONS,
    BatchNormFacts,
    ForeignArray,
    ForeignFile,
    Symbol,
    decode,
    is_shape,
)

LIST_MAGIC = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
DTYPES = {0: "float32", 1: "float64", 2: "float16", 3: "uint8", 4: "int32", 5: "int8", 6: "int64", 12: "bfloat16"}
DEFAULT_EPS = 1e-3  # of MXNet's symbol BatchNorm, where the file does not say


def open_params(path: Path, data: FileBytes) -> ForeignFile:
    """Open a list of named arrays.

    Raises:
        ValueError: the file is cut short or damaged, or holds sparse arrays.
    """
    reader = _Reader(path, data)
    if reader.number("<Q") != LIST_MAGIC or reader.number("<Q") != 0:
        raise ValueError(f"{path}: expected MXNet's list of arrays")
    arrays = [_array(reader) for _ in range(reader.count(4))]
    names = [reader.take(reader.number("<Q")) for _ in range(reader.count(8))]
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise ValueError(f"{path}: expected a name of its own for each array, got {len(set(names))} of {len(arrays)}")
    if reader.position != len(data):
        raise ValueError(f"{path}: {len(data) - reader.position} bytes too many at its end")
    try:
        return ForeignFile("MXNet", [{name.decode(): array for name, array in zip(names, arrays, strict=True)}])
    except UnicodeDecodeError:
        raise ValueError(f"{path}: a name is not UTF-8") from None


def symbol_path(params: Path) -> Path:
    """Name the symbol beside a file: PREFIX-symbol.json of PREFIX-0000.params."""
    return params.with_name(params.stem.rpartition("-")[0] + "-symbol.json")


def open_symbol(path: Path) -> Symbol:
    """Read a `-symbol.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no graph of MXNet, or has several pixel means or scales.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the network's symbol beside its .params; name another with --symbol")
    graph = read_json(path, "a network of MXNet")
    try:
        named = [(node["op"], str(node["name"]), _attributes(node)) for node in graph["nodes"]]
        batch_norms = {
            name: BatchNormFacts(_number(a.get("eps", DEFAULT_EPS)), a.get("fix_gamma", "True") in ("True", "1"))
            for operator, name, a in named
            if operator == "BatchNorm"
        }
        scalars = {
            operator: [_number(a["scalar"]) for found, _, a in named if found == operator]
            for operator in ("_minus_scalar", "_mul_scalar")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected a network of MXNet in JSON ({type(error).__name__}: {error})") from None
    if any(len(values) > 1 for values in scalars.values()):
        raise ValueError(f"{path}: expected one subtraction and one multiplication of the pixels, got {scalars}")
    mean, scale = (next(iter(values), None) for values in scalars.values())
    return Symbol(batch_norms, mean, scale)


class _Reader:
    """Reads values one after the other, and refuses to read beyond the end of the file."""

    def __init__(self, path: Path, data: FileBytes) -> None:
        self.path, self.data, self.position = path, data, 0

    def take(self, size: int) -> bytes:
        start = self.skip(size)
        return self.data[start : start + size]

    def skip(self, size: int) -> int:
        """Move on by `size` bytes; returns the offset at which they start."""
        start = self.position
        if size > len(self.data) - start:
            left = len(self.data) - start
            raise ValueError(f"{self.path}: is cut short: {size} bytes expected at byte {start}, {left} left")
        self.position += size
        return start

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, least_bytes: int) -> int:
        """Read how many entries follow, of which each takes `least_bytes` or more."""
        count = self.number("<Q")
        if count * least_bytes > len(self.data) - self.position:
            raise ValueError(f"{self.path}: is cut short: {count} entries expected at byte {self.position}")
        return count


def _array(reader: _Reader) -> ForeignArray:
    magic = reader.number("<I")
    if magic in (V2, V3) and reader.number("<i") != 0:
        raise ValueError(f"{reader.path}: expected dense arrays, got a sparse one")
    if magic in (V1, V2, V3):
        shape = _shape(reader, reader.number("<I"), "<q")
    else:
        shape = _shape(reader, magic, "<I")
    if not shape and magic != V3:
        return ForeignArray((0,), "float32", partial(np.zeros, 0, np.float32))  # MXNet's array without values
    reader.skip(8)  # the device
    flag = reader.number("<i")
    if flag not in DTYPES:
        raise ValueError(f"{reader.path}: expected a dtype among {sorted(DTYPES)}, got {flag}")
    dtype = DTYPES[flag]
    size = math.prod(shape) * ITEM_BYTES[dtype]
    start, data = reader.skip(size), reader.data
    return ForeignArray(shape, dtype, lambda: decode(data[start : start + size], dtype).reshape(shape))


def _shape(reader: _Reader, dimensions: int, form: str) -> tuple[int, ...]:
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(f"{reader.path}: expected an array at byte {reader.position}, got {dimensions} dimensions")
    shape = tuple(reader.number(form) for _ in range(dimensions))
    if not is_shape(shape):
        raise ValueError(f"{reader.path}: expected the sizes of an array, got {shape}")
    return shape


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, got {value!r}")
    return number


def _attributes(node: dict[str, Any]) -> dict[str, str]:
    """MXNet named the attributes differently in three versions."""
    return next((node[name] for name in ("attrs", "attr", "param") if name in node), {})
