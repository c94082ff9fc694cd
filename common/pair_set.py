"""Evaluation sets (NAME.bin): a pickle of (encoded images, same or not), two images a pair.

The file is never unpickled, so nothing in it can run (see pickle_stream.py). Images are not copied either: what is kept
of each is where it lies in the memory-mapped file, so that a set of any size takes next to no memory.
"""

import mmap
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write
from common.pickle_stream import Built, Call, Slice, UnexpectedPickle, follow, text_of


class PairSet:
    """Pairs of encoded images; any number of threads may read.

    Attributes:
        path: the file.
        name: its stem.
        issame: (P,) bool, whether pair i (images 2i and 2i + 1) shows one person.
    """

    def __init__(self, path: Path, data: mmap.mmap, images: list[Slice], issame: np.ndarray) -> None:
        self.path = path
        self.name = path.stem
        self.issame = issame
        self._data = data
        self._images = images

    def __len__(self) -> int:
        return len(self.issame)

    def encoded(self, index: int) -> bytes:
        """The bytes of image 0 .. 2P - 1, as stored: JPEG or PNG as a rule."""
        try:
            return self._images[index].content(self._data)
        except ValueError as error:
            raise ValueError(f"{self.path} image {index}: expected bytes, got text ({error})") from None


def open_pair_set(path: Path) -> PairSet:
    """Open NAME.bin as written by Python 2 or 3, any pickle protocol, with images as bytes or uint8 arrays.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut short or holds anything else than such a pickle; nothing in it was executed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an evaluation set, found none")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty; expected an evaluation set")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        images, issame = _contents(follow(data), data)
    except UnexpectedPickle as error:
        raise ValueError(
            f"{path}: expected a pickle of (encoded images, issame), found {error}; nothing in it was executed. "
            "Fetch or write the file again"
        ) from None
    if len(images) != 2 * len(issame) or not issame:
        raise ValueError(f"{path}: expected 2 images a pair, got {len(images)} images for {len(issame)} pairs")
    return PairSet(path, data, images, np.array(issame, bool))


def write_pair_set(path: Path, encoded_images: Iterable[bytes], issame: Iterable[bool]) -> None:
    """Write NAME.bin, atomically; `pickle.load(file, encoding="bytes")` gives (list of bytes, list of bool).

    Args:
        path: the file.
        encoded_images: two a pair; they stream.
        issame: a bool a pair.

    Raises:
        ValueError: not two images a pair.
    """
    flags = [bool(flag) for flag in issame]
    count = 0
    with atomic_write(path) as file:
        # by hand, since pickle.dump would need all images at once
        file.write(pickle.PROTO + b"\x03" + pickle.EMPTY_LIST)
        for image in encoded_images:
            if len(image) >= 2**32:
                raise ValueError(f"{path}: expected images below 4 GiB, got {len(image)} bytes for image {count}")
            file.write(pickle.BINBYTES + struct.pack("<I", len(image)))
            file.write(image)
            file.write(pickle.APPEND)
            count += 1
        file.write(pickle.EMPTY_LIST + pickle.MARK)
        file.writelines(pickle.NEWTRUE if flag else pickle.NEWFALSE for flag in flags)
        file.write(pickle.APPENDS + pickle.TUPLE2 + pickle.STOP)
        if count != 2 * len(flags) or not flags:
            raise ValueError(f"{path}: expected 2 images a pair, got {count} images for {len(flags)} pairs")


def _contents(value: Any, data: mmap.mmap) -> tuple[list[Slice], list[bool]]:
    if type(value) not in (tuple, list) or len(value) != 2 or not all(type(part) is list for part in value):
        raise UnexpectedPickle("something else than two lists")
    return [_image(item, data) for item in value[0]], [_flag(item, data) for item in value[1]]


def _image(value: Any, data: mmap.mmap) -> Slice:
    """The bytes of an image that is stored as bytes or as a uint8 array of one dimension."""
    if isinstance(value, Built) and value.made_by.function.endswith("._reconstruct"):
        state = value.state  # version, shape, dtype, is_fortran, bytes
        if type(state) is tuple and len(state) == 5 and _is_vector(state[1]) and _is_dtype(state[2], "u1", data):
            value = state[4]
    elif isinstance(value, Call) and value.function.endswith("._frombuffer"):
        arguments = value.arguments  # bytes, dtype, shape, order
        if len(arguments) == 4 and _is_dtype(arguments[1], "u1", data) and _is_vector(arguments[2]):
            value = arguments[0]
    if not isinstance(value, Slice) or not value.is_bytes:
        raise UnexpectedPickle("an image that is neither bytes nor a one-dimensional uint8 array")
    return value


def _flag(value: Any, data: mmap.mmap) -> bool:
    if isinstance(value, Call) and value.function.endswith(".scalar") and len(value.arguments) == 2:
        dtype, content = value.arguments
        if _is_dtype(dtype, "b1", data) and isinstance(content, Slice) and content.stop - content.start <= 10:
            value = {b"\x00": False, b"\x01": True}.get(_bytes(content, data))
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise UnexpectedPickle("something else than true or false in place of same or not")


def _bytes(value: Slice, data: mmap.mmap) -> bytes | None:
    try:
        return value.content(data)
    except ValueError:
        return None


def _is_vector(shape: Any) -> bool:
    return type(shape) is tuple and len(shape) == 1


def _is_dtype(dtype: Any, name: str, data: mmap.mmap) -> bool:
    made_by = dtype.made_by if isinstance(dtype, Built) else dtype
    if not isinstance(made_by, Call) or made_by.function != "numpy.dtype" or not made_by.arguments:
        return False
    return text_of(made_by.arguments[0], data) == name
