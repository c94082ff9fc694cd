"""Evaluation sets (NAME.bin): a pickle of (encoded images, issame), with two images and one bool a pair.

The pickle is followed and never run (`common.io.pickles`). An image is not copied: the set keeps its place in the
file, so a set of any size takes next to no memory.
"""

import pickle
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.io import pickles
from common.io.files import FileBytes, atomic_write, file_stem, require_file
from common.io.pickles import Call, Slice, Unexpected

LEAST_PAIRS = 10  # one a fold of the evaluation


class PairSet:
    """Pairs of encoded images; any number of threads may read.

    Attributes:
        name: name of the file without its suffix.
        issame: (P,) bool; true if pair i, the images 2i and 2i + 1, shows one person.
    """

    def __init__(self, name: str, data: FileBytes, images: list[Slice], issame: np.ndarray) -> None:
        self.name = name
        self.issame = issame
        self._data = data
        self._images = images

    def __len__(self) -> int:
        return len(self.issame)

    def encoded(self, index: int) -> bytes:
        """Read the bytes of image 0 .. 2P - 1 as they are stored: JPEG or PNG as a rule.

        Raises:
            ValueError: the pickle holds the image as text that does not stand for bytes, or the file has shrunk.
        """
        return pickles.content(self._data, self._images[index])


def open_pair_set(path: Path) -> PairSet:
    """Open NAME.bin as written by Python 2 or 3, with images as bytes or uint8 arrays,
    and flags as Python's or NumPy's booleans or integers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short or is no such pickle; nothing in it was executed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "mine.bin"
    >>> write_pair_set(path, images=[b"ann 1", b"ann 2", b"ann 1", b"bob 1"], issame=[True, False])
    >>> pairs = open_pair_set(path)
    >>> pairs.name, pairs.issame, pairs.encoded(3)
    ('mine', array([ True, False]), b'bob 1')
    """
    if require_file(path, "an evaluation set").stat().st_size == 0:
        raise ValueError(f"{path}: is empty; expected an evaluation set")
    data = FileBytes(path)
    try:
        images, issame = _contents(pickles.follow(data, _FUNCTIONS)[0], data)
    except Unexpected as error:
        raise ValueError(
            f"{path}: expected a pickle of (encoded images, issame), found {error}; nothing in it was executed"
        ) from None
    if len(images) != 2 * len(issame) or not issame:
        raise ValueError(f"{path}: expected 2 images a pair, got {len(images)} images for {len(issame)} pairs")
    return PairSet(path.stem, data, images, np.array(issame, bool))


def find_pair_sets(root: Path, names: Sequence[str]) -> tuple[dict[str, PairSet], list[str]]:
    """Open the evaluation sets root/NAME.bin that are there.

    Returns:
        The open sets by name, and the names without a file, both in the order of `names`.

    Raises:
        ValueError: a name is a path, or a file is no evaluation set or has fewer than LEAST_PAIRS.
    """
    found: dict[str, PairSet] = {}
    missing: list[str] = []
    for name in dict.fromkeys(names):
        path = Path(root) / f"{file_stem(name)}.bin"
        if path.is_file():
            found[name] = open_pair_set(path)
            if len(found[name]) < LEAST_PAIRS:
                raise ValueError(f"{path}: expected at least {LEAST_PAIRS} pairs, one a fold, got {len(found[name])}")
        else:
            missing.append(name)
    return found, missing


def write_pair_set(path: Path, images: Iterable[bytes], issame: Iterable[bool]) -> None:
    """Write NAME.bin, atomically; `pickle.load` gives (list of bytes, list of bool).

    Args:
        path: the file to write.
        images: encoded images, two a pair; an iterator is consumed one by one.
        issame: one bool a pair: whether it shows one person.

    Raises:
        ValueError: there are not two images a pair, or no pairs; nothing is written then.
        OSError: the file cannot be written.
    """
    flags = [bool(flag) for flag in issame]
    count = 0
    with atomic_write(path) as file:
        file.write(pickle.PROTO + b"\x03" + pickle.EMPTY_LIST)
        for image in images:
            file.write(pickle.BINBYTES + struct.pack("<I", len(image)) + image + pickle.APPEND)
            count += 1
        file.write(pickle.EMPTY_LIST + pickle.MARK)
        file.writelines(pickle.NEWTRUE if flag else pickle.NEWFALSE for flag in flags)
        file.write(pickle.APPENDS + pickle.TUPLE2 + pickle.STOP)
        if count != 2 * len(flags) or not flags:
            raise ValueError(f"{path}: expected 2 images a pair, got {count} images for {len(flags)} pairs")


_FUNCTIONS = pickles.NUMPY_FUNCTIONS | pickles.NUMPY_SCALARS | {"numpy.ndarray"}


def _contents(value: Any, data: FileBytes) -> tuple[list[Slice], list[bool]]:
    if type(value) not in (tuple, list) or len(value) != 2:
        raise Unexpected("something else than two lists")
    images, flags = value
    if type(images) not in (tuple, list):
        raise Unexpected("something else than a list of images")
    return [_image(item, data) for item in images], _flags(flags, data)


def _image(value: Any, data: FileBytes) -> Slice:
    """Find the bytes of an image, which is stored as bytes or as a uint8 array: (n,), (n, 1) or (1, n)."""
    array = pickles.numpy_array(data, value)
    if array is not None and type(array.shape) is tuple and sum(size != 1 for size in array.shape) <= 1:
        value = array.raw if pickles.numpy_dtype(data, array.dtype) == "u1" else None
    if not isinstance(value, Slice):
        raise Unexpected("an image that is neither bytes nor a one-dimensional uint8 array")
    return value


def _flags(value: Any, data: FileBytes) -> list[bool]:
    """A list or tuple of flags, or an array of booleans or integers."""
    if type(value) in (tuple, list):
        return [_flag(item, data) for item in value]
    array = pickles.numpy_array(data, value)
    if array is None or not isinstance(array.raw, Slice):
        raise Unexpected("something else than a list in place of same or not")
    return _numbers(data, array.dtype, array.raw)


def _flag(value: Any, data: FileBytes) -> bool:
    if isinstance(value, Call) and value.function in pickles.NUMPY_SCALARS and len(value.arguments) == 2:
        dtype, value = value.arguments
        if isinstance(value, Slice):
            flags = _numbers(data, dtype, value)
            value = flags[0] if len(flags) == 1 else None
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise Unexpected("something else than true or false in place of same or not")


def _numbers(data: FileBytes, dtype: Any, raw: Slice) -> list[bool]:
    """Booleans or integers of NumPy, each 0 or 1, little-endian."""
    name = pickles.numpy_dtype(data, dtype) or ""
    size = int(name[1]) if len(name) == 2 and name[0] in "biu" and name[1] in "1248" else 0
    content = pickles.content(data, raw)
    if not size or len(content) % size:
        raise Unexpected("an array of something else than true or false in place of same or not")
    numbers = np.frombuffer(content, f"<{name}" if name[0] != "b" else "u1")
    if not np.isin(numbers, (0, 1)).all():
        raise Unexpected("a number that is neither 0 nor 1 in place of same or not")
    return [bool(number) for number in numbers]
