"""Reading `.npz` files from anywhere: nothing is unpickled, and no size is believed before it is checked."""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

MOST_EXPANSION = 100
"""Embeddings hardly shrink when packed. A member that unpacks to more than this many times its size is refused."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of numpy.savez and numpy.savez_compressed

# What zipfile, zlib and NumPy's reader of headers raise on damage.
_ERRORS = (
    *(ValueError, TypeError, SyntaxError, RuntimeError, ArithmeticError, EOFError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


def read_arrays(path: Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, by name.

    Args:
        path: the file; it may have come from anywhere.
        names: the arrays to read, each of which must be there; None: all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, lacks an array, holds Python objects, or unpacks to far more than its size; the
            message names the file and the array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an .npz file, found none")
    arrays = {}
    name = "it"
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            packed, size = sum(member.compress_size for member in members.values()), path.stat().st_size
            if packed > size:
                raise ValueError(f"its arrays claim {packed} bytes of a file of {size}")
            wanted = [name for name in (members if names is None else names) if name in members]
            if (total := sum(members[name].file_size for name in wanted)) > 2**20 + MOST_EXPANSION * size:
                raise ValueError(f"a file of {size} bytes that unpacks to {total}")
            for name in members if names is None else names:
                if name not in members:
                    raise ValueError(f"no such array, found {', '.join(members) or 'none'}")
                arrays[name] = _read_member(archive, members[name])
    except _ERRORS as error:
        raise ValueError(f"{path}: cannot read {name} ({error})") from None
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in METHODS:
        raise ValueError(f"packed by method {member.compress_type}; expected stored or deflated")
    if member.file_size > 2**20 + MOST_EXPANSION * member.compress_size:
        raise ValueError(f"{member.compress_size} bytes that unpack to {member.file_size}")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # the others are for records of many fields
            raise ValueError(f"version {version} of the .npy format in place of (1, 0)")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError("Python objects, which would have to be unpickled")
        length = math.prod(shape) * dtype.itemsize
        if length != member.file_size - file.tell():
            raise ValueError(f"{member.file_size - file.tell()} bytes in place of {length} for {dtype} {shape}")
        if not dtype.itemsize:
            raise ValueError(f"elements without a size, {dtype}")
        content = file.read(length)
    return np.ndarray(shape, dtype, content, order="F" if is_fortran else "C")
