"""Evaluation sets (NAME.bin): a pickle of (encoded images, same or not), two images a pair.

A pickle is a program. This one is never run: `pickletools` lists its instructions, and the few that such files consist
of are followed by hand; names of functions stay names. Images are not copied either: what is kept of each is where it
lies in the memory-mapped file, so that a set of any size takes next to no memory.
"""

import mmap
import pickle
import pickletools
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from common.files import atomic_write


class PairSet:
    """Pairs of encoded images; any number of threads may read.

    Attributes:
        name: the file's stem.
        issame: (P,) bool, whether pair i (images 2i and 2i + 1) shows one person.
    """

    def __init__(self, name: str, data: mmap.mmap, images: list["Slice"], issame: np.ndarray) -> None:
        self.name = name
        self.issame = issame
        self._data = data
        self._images = images

    def __len__(self) -> int:
        return len(self.issame)

    def encoded(self, index: int) -> bytes:
        """The bytes of image 0 .. 2P - 1, as stored: JPEG or PNG as a rule."""
        image = self._images[index]
        content = self._data[image.start : image.stop]
        return content.decode("utf-8").encode("latin-1") if image.is_text else content


class Slice(NamedTuple):
    """Where a string lies in the file. Text: Python 3 writes bytes for Python 2 as Latin-1 put into UTF-8."""

    start: int
    stop: int
    is_text: bool = False


class Call(NamedTuple):
    """A function that the pickle wants called. It is not."""

    function: str
    arguments: Any


class Built(NamedTuple):
    """An object with the state that the pickle wants to give it."""

    made_by: Call
    state: Any


def open_pair_set(path: Path) -> PairSet:
    """Open NAME.bin as written by Python 2 or 3, with images as bytes or uint8 arrays.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut short or holds anything else than such a pickle; nothing in it was executed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an evaluation set, found none")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: is empty; expected an evaluation set")
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        images, issame = _contents(_follow(data), data)
    except _Unexpected as error:
        raise ValueError(
            f"{path}: expected a pickle of (encoded images, issame), found {error}; nothing in it was executed"
        ) from None
    if len(images) != 2 * len(issame) or not issame:
        raise ValueError(f"{path}: expected 2 images a pair, got {len(images)} images for {len(issame)} pairs")
    return PairSet(path.stem, data, images, np.array(issame, bool))


def write_pair_set(path: Path, images: Iterable[bytes], issame: Iterable[bool]) -> None:
    """Write NAME.bin, atomically; `pickle.load` gives (list of bytes, list of bool).

    Args:
        path: the file.
        images: encoded images, two a pair; they stream.
        issame: a bool a pair.

    Raises:
        ValueError: not two images a pair.
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


class _Unexpected(Exception):
    """Something that no evaluation set holds."""


_MARK = object()
_MOST_INSTRUCTIONS = 10_000_000  # a million pairs need fewer, and each may take memory
_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "SHORT_BINSTRING": 1, "BINSTRING": 4, "BYTEARRAY8": 8}
_TEXT = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}
_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NOTHING_TO_DO = {"PROTO", "FRAME"}


def _follow(data: mmap.mmap) -> Any:
    """What the pickle would make, with strings as `Slice`, calls as `Call` and objects as `Built`."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def pop_to_mark() -> list[Any]:
        for position in range(len(stack) - 1, -1, -1):
            if stack[position] is _MARK:
                items = stack[position + 1 :]
                del stack[position:]
                return items
        raise _Unexpected("an end without a beginning")

    def pop() -> Any:
        if not stack or stack[-1] is _MARK:
            raise _Unexpected("an instruction without its argument")
        return stack.pop()

    def append(items: list[Any]) -> None:
        if not stack or type(stack[-1]) is not list:
            raise _Unexpected("items for something that is no list")
        stack[-1].extend(items)

    data.seek(0)
    try:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(cast(IO[bytes], data))):
            name, position = opcode.name, int(place or 0)
            if count == _MOST_INSTRUCTIONS:
                raise _Unexpected(f"more than {_MOST_INSTRUCTIONS} instructions")
            if name in _BYTES or name in _TEXT:
                start = position + 1 + (_BYTES.get(name) or _TEXT[name])
                stack.append(Slice(start, data.tell(), name in _TEXT))
            elif name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "STRING":  # protocol 0 escapes it, so that it cannot be read in place
                raise _Unexpected("text of pickle protocol 0; write it again with protocol 2 or later")
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name == "LIST":
                stack.append(pop_to_mark())
            elif name == "APPEND":
                item = pop()
                append([item])
            elif name == "APPENDS":
                append(pop_to_mark())
            elif name == "EMPTY_TUPLE":
                stack.append(())
            elif name == "TUPLE":
                stack.append(tuple(pop_to_mark()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                stack.append(tuple([pop() for _ in range(int(name[-1]))][::-1]))
            elif name == "GLOBAL":
                stack.append(str(argument).replace(" ", "."))
            elif name == "STACK_GLOBAL":
                function, module = _text(data, pop()), _text(data, pop())
                stack.append(f"{module}.{function}")
            elif name == "REDUCE":
                arguments, function = pop(), pop()
                stack.append(_checked_call(data, function, arguments))
            elif name == "BUILD":
                state, made = pop(), pop()
                if not isinstance(made, Call):
                    raise _Unexpected("a state for something that is no object")
                stack.append(Built(made, state))
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                value = pop()
                memo[len(memo) if name == "MEMOIZE" else argument] = value
                stack.append(value)
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                if argument not in memo:
                    raise _Unexpected("a reference to nothing")
                stack.append(memo[argument])
            elif name == "STOP":
                return pop()
            elif name not in _NOTHING_TO_DO:
                raise _Unexpected(f"the instruction {name}")
    except (ValueError, EOFError, OverflowError, struct.error, AttributeError, TypeError) as error:
        raise _Unexpected(f"a damaged pickle ({error})") from None
    raise _Unexpected("a pickle that is cut short")


_NUMPY = ("numpy.core.multiarray.", "numpy._core.multiarray.", "numpy.core.numeric.", "numpy._core.numeric.")
_FUNCTIONS = {
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    *(module + name for module in _NUMPY for name in ("_reconstruct", "scalar", "_frombuffer")),
}


def _checked_call(data: mmap.mmap, function: Any, arguments: Any) -> Any:
    if not isinstance(function, str) or function not in _FUNCTIONS or type(arguments) is not tuple:
        raise _Unexpected(f"a call of {function!r}")
    if function == "_codecs.encode":
        if len(arguments) == 2 and isinstance(arguments[0], Slice) and _text(data, arguments[1]) == "latin1":
            return arguments[0]
        raise _Unexpected("an encoding other than latin1")
    return Call(function, arguments)


def _text(data: mmap.mmap, value: Any) -> str:
    if not isinstance(value, Slice) or value.stop - value.start > 1000:
        raise _Unexpected("something else in place of a name")
    return data[value.start : value.stop].decode("utf-8")


def _contents(value: Any, data: mmap.mmap) -> tuple[list[Slice], list[bool]]:
    if type(value) not in (tuple, list) or len(value) != 2 or not all(type(part) is list for part in value):
        raise _Unexpected("something else than two lists")
    return [_image(item, data) for item in value[0]], [_flag(item, data) for item in value[1]]


def _image(value: Any, data: mmap.mmap) -> Slice:
    """The bytes of an image that is stored as bytes or as a uint8 array of one dimension."""
    if isinstance(value, Built) and value.made_by.function.endswith("._reconstruct"):
        state = value.state  # version, shape, dtype, is_fortran, bytes
        if type(state) is tuple and len(state) == 5 and _one_dimension(state[1]) and _is_uint8(state[2], data):
            value = state[4]
    elif isinstance(value, Call) and value.function.endswith("._frombuffer"):
        arguments = value.arguments  # bytes, dtype, shape, order
        if len(arguments) == 4 and _is_uint8(arguments[1], data) and _one_dimension(arguments[2]):
            value = arguments[0]
    if not isinstance(value, Slice):
        raise _Unexpected("an image that is neither bytes nor a one-dimensional uint8 array")
    return value


def _one_dimension(shape: Any) -> bool:
    return type(shape) is tuple and len(shape) == 1


def _is_uint8(dtype: Any, data: mmap.mmap) -> bool:
    made_by = dtype.made_by if isinstance(dtype, Built) else dtype
    is_dtype = isinstance(made_by, Call) and made_by.function == "numpy.dtype" and len(made_by.arguments) > 0
    return is_dtype and _text(data, made_by.arguments[0]) == "u1"


def _flag(value: Any, data: mmap.mmap) -> bool:
    if isinstance(value, Call) and value.function.endswith(".scalar") and len(value.arguments) == 2:
        value = value.arguments[1]
        if isinstance(value, Slice):
            value = {b"\x00": False, b"\x01": True}.get(data[value.start : value.stop])
    if isinstance(value, bool) or (type(value) is int and value in (0, 1)):
        return bool(value)
    raise _Unexpected("something else than true or false in place of same or not")
