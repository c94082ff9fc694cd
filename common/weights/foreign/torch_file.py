"""PyTorch's `.pth`: a zip of a pickle and raw storages, or, before PyTorch 1.6, pickles with the storages behind them.

    zip      NAME/data.pkl, NAME/data/KEY for each storage, NAME/byteorder
    legacy   five pickles (magic number, protocol, sizes, the object, the keys of the storages), then for each key
             u64 count, count numbers

In the pickle a tensor is a call of `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`, and a storage is a
persistent id ("storage", torch.FloatStorage, key, location, count). Nothing is called (`common.io.pickles`).
Source of the layout: torch/serialization.py and torch/_utils.py of PyTorch.
"""

import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.io.files import FileBytes
from common.io.pickles import NUMPY_FUNCTIONS, NUMPY_SCALARS, Call, Data, Items, Slice, Stored, Unexpected, follow, text
from common.weights.foreign.arrays import ITEM_BYTES, ForeignArray, ForeignFile, are_sizes, decode, groups, is_shape

REBUILD, PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
OTHERS = frozenset({"collections.Counter", *NUMPY_FUNCTIONS, *NUMPY_SCALARS})
"""Functions of what a checkpoint of a training holds besides tensors: schedulers, best figures."""
FUNCTIONS = OTHERS | {REBUILD, PARAMETER, "collections.OrderedDict"}
STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."
MOST_PICKLE_BYTES = 2**26  # of a zip: it holds names and shapes only

ReadStorage = Callable[[str, int], bytes]  # from key and number of bytes


class Storage(NamedTuple):
    """Numbers in a row; tensors are views of them. `size` counts numbers, `dtype` is one of `ITEM_BYTES`."""

    key: str
    dtype: str
    size: int


def open_zip(path: Path) -> ForeignFile:
    """Open the format of PyTorch 1.6 and later.

    Raises:
        ValueError: it is damaged, or holds something else than dicts of tensors; nothing in it was executed.
    """
    try:
        file = zipfile.ZipFile(path)
        names = {name.rpartition("/")[0] for name in file.namelist() if name.endswith("/data.pkl")}
        if len(names) != 1:
            raise ValueError(f"{path}: expected a zip file with one folder that holds data.pkl, as torch.save writes")
        root = names.pop()
        if f"{root}/byteorder" in file.namelist() and _member(file, f"{root}/byteorder", 16) != b"little":
            raise ValueError(f"{path}: expected numbers in little-endian order; save it again on such a machine")
        pickled = _member(file, f"{root}/data.pkl", MOST_PICKLE_BYTES)
    except _ZIP_ERRORS as error:
        raise ValueError(f"{path}: is a damaged zip file ({error})") from None

    def read(key: str, size: int) -> bytes:
        try:
            return _member(file, f"{root}/data/{key}", size, exactly=True)
        except _ZIP_ERRORS as error:
            raise ValueError(f"{path}: storage {key!r} is damaged ({error})") from None

    try:
        value, _ = follow(pickled, FUNCTIONS)
        return ForeignFile("PyTorch", list(groups(pickled, value, partial(_tensor, read=read))))
    except Unexpected as error:
        raise _refusal(path, error) from None


def open_legacy(path: Path, data: FileBytes) -> ForeignFile:
    """Open the format of PyTorch before 1.6; raises as `open_zip`."""
    places: dict[str, tuple[int, int]] = {}

    def read(key: str, size: int) -> bytes:
        start, there = places.get(key, (0, -1))
        if there != size:
            raise ValueError(f"{path}: expected a storage {key!r} of {size} bytes, found {there}")
        return data[start : start + size]

    try:
        value, places = _legacy_contents(data)
        return ForeignFile("PyTorch (legacy format)", list(groups(data, value, partial(_tensor, read=read))))
    except Unexpected as error:
        raise _refusal(path, error) from None


def _legacy_contents(data: Data) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Follow the five pickles; returns the object, and for each storage its byte offset and its bytes."""
    parts, stop = [], 0
    for functions in ((), (), (), FUNCTIONS, ()):
        part, stop = follow(data, functions, stop)
        parts.append(part)
    magic, protocol, sizes, value, keys = parts
    little = [v for k, v in sizes if text(data, k) == "little_endian"] if type(sizes) is Items else []
    if magic != LEGACY_MAGIC or protocol != 1001 or little != [True] or type(keys) is not list:
        raise Unexpected("another version of it, or big-endian numbers")
    widths = {s.key: ITEM_BYTES[s.dtype] for s in _storages(value, data)}
    return value, _places(data, stop, [text(data, key) for key in keys], widths)


def _places(data: Data, start: int, keys: list[str], widths: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Byte offset and bytes of each storage; they lie in the order of `keys` from `start` on."""
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in widths:
            raise Unexpected(f"the storage {key!r}, which no tensor uses")
        count = struct.unpack("<q", data[start : start + 8])[0] if start + 8 <= len(data) else -1
        size = count * widths[key]
        if count < 0 or start + 8 + size > len(data):
            raise Unexpected(f"the end of the file in the storage {key!r}")
        places[key] = start + 8, size
        start += 8 + size
    return places


# zipfile raises these on damage; OSError: an offset before the start of the file; UnicodeError: a name
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, UnicodeError, struct.error)


def _refusal(path: Path, error: Unexpected) -> ValueError:
    return ValueError(
        f"{path}: expected dicts of tensors, found {error}; nothing in it was executed. "
        "If it holds more than weights, save the state_dict() of the network alone"
    )


def _member(file: zipfile.ZipFile, name: str, size: int, exactly: bool = False) -> bytes:
    """Read a file of the zip. A compressed one is refused: it could unpack to more than the memory holds."""
    try:
        info = file.getinfo(name)
    except KeyError:
        raise ValueError(f"{file.filename}: expected a file {name!r} in it, found none") from None
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise ValueError(f"{file.filename}: expected {name!r} neither compressed nor encrypted")
    if info.file_size > size or (exactly and info.file_size != size):
        raise ValueError(f"{file.filename}: expected {size} bytes in {name!r}, got {info.file_size}")
    if info.compress_size != info.file_size:  # zipfile would make room for the first
        raise ValueError(
            f"{file.filename}: is damaged: {info.compress_size} bytes hold the {info.file_size} of {name!r}"
        )
    if info.file_size > Path(str(file.filename)).stat().st_size:
        raise ValueError(f"{file.filename}: is cut short: {info.file_size} bytes expected in {name!r}")
    return file.read(name)


def _tensor(call: Any, data: Data, read: ReadStorage) -> ForeignArray | None:
    """Read what the pickle says of a tensor, and check it against its storage. None: the entry is no tensor."""
    if not isinstance(call, Call) or call.function in OTHERS:
        return None
    if call.function == PARAMETER and len(call.arguments) == 3 and isinstance(call.arguments[0], Call):
        call = call.arguments[0]
    if call.function != REBUILD or len(call.arguments) not in (6, 7):
        raise Unexpected("a tensor that is stored in another way")
    storage, (offset, shape, strides) = _storage(call.arguments[0], data), call.arguments[1:4]
    _check_view(storage, offset, shape, strides)

    def values() -> np.ndarray:
        numbers = decode(read(storage.key, storage.size * ITEM_BYTES[storage.dtype]), storage.dtype)
        if not math.prod(shape):
            return numbers[:0].reshape(shape)
        steps = [stride * numbers.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False).copy()

    return ForeignArray(shape, storage.dtype, values)


def _check_view(storage: Storage, offset: Any, shape: Any, strides: Any) -> None:
    if not (are_sizes((offset,)) and is_shape(shape) and are_sizes(strides) and len(shape) == len(strides)):
        raise Unexpected("a tensor whose shape, strides or offset are no sizes")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # with strides of 0, a tiny storage could claim to be a huge array: hence the second condition
    if count and (last >= storage.size or count > storage.size):
        raise Unexpected(f"a tensor of shape {shape} in a storage of {storage.size} numbers")


def _storage(value: Any, data: Data) -> Storage:
    identity = value.identity if isinstance(value, Stored) else None
    if type(identity) is not tuple or len(identity) not in (5, 6) or text(data, identity[0]) != "storage":
        raise Unexpected("a tensor without a storage")
    _, kind, key, _, count = identity[:5]
    if not isinstance(kind, str) or kind not in STORAGES or not are_sizes((count,)):
        raise Unexpected("a storage of an unknown kind")
    if len(identity) == 6 and identity[5] is not None:
        raise Unexpected("a storage that is a view of another")
    return Storage(text(data, key), STORAGES[kind], count)


def _storages(value: Any, data: Data) -> Iterator[Storage]:
    """Find every storage in the object, also those of tensors that are no weights."""
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, Stored):
            yield _storage(item, data)
        elif isinstance(item, list | tuple) and not isinstance(item, Slice) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(item)
