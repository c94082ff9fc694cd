"""Pickles followed by hand, and never run.

A pickle is a program. `pickletools` lists its instructions, and the few that lists, dicts, arrays and tensors consist
of are followed here; names of functions stay names, and a function that is to be called becomes a `Call`. Strings are
not copied either: what is kept of each is where it lies, so that a file of any size takes next to no memory.
"""

import io
import mmap
import pickletools
import struct
from collections.abc import Collection
from typing import IO, Any, NamedTuple, cast

Data = mmap.mmap | bytes


class Unexpected(Exception):
    """Something that no such file holds; the message continues "found ..."."""


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


class Stored(NamedTuple):
    """What the pickle says of something that lies elsewhere in its file."""

    identity: Any


class Items(list[tuple[Any, Any]]):
    """The keys and values of a dict or an OrderedDict, in order."""


def follow(data: Data, functions: Collection[str], start: int = 0) -> tuple[Any, int]:
    """What the pickle at `start` would make, and the offset of its end.

    Args:
        data: bytes, or a memory-mapped file.
        functions: names of those that may be called, such as "numpy.ndarray". A name that is only mentioned is a `str`
            in what comes back; strings of the file are a `Slice`.

    Raises:
        Unexpected: an instruction or a call that is not among those known here, a damaged pickle, or a truncated one.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def pop_to_mark() -> list[Any]:
        for position in range(len(stack) - 1, -1, -1):
            if stack[position] is _MARK:
                items = stack[position + 1 :]
                del stack[position:]
                return items
        raise Unexpected("an end without a beginning")

    def pop() -> Any:
        if not stack or stack[-1] is _MARK:
            raise Unexpected("an instruction without its argument")
        return stack.pop()

    def append(items: list[Any]) -> None:
        if not stack or type(stack[-1]) is not list:
            raise Unexpected("items for something that is no list")
        stack[-1].extend(items)

    def set_items(items: list[Any]) -> None:
        if not stack or type(stack[-1]) is not Items or len(items) % 2:
            raise Unexpected("keys and values for something that is no dict")
        stack[-1].extend(zip(items[::2], items[1::2], strict=True))

    file = data if isinstance(data, mmap.mmap) else io.BytesIO(data)
    file.seek(start)
    try:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(cast(IO[bytes], file))):
            name, position = opcode.name, int(place or 0)
            if count == _MOST_INSTRUCTIONS:
                raise Unexpected(f"more than {_MOST_INSTRUCTIONS} instructions")
            if name in _BYTES or name in _TEXT:
                first = position + 1 + (_BYTES.get(name) or _TEXT[name])
                stack.append(Slice(first, file.tell(), name in _TEXT))
            elif name in _VALUES:
                if isinstance(argument, int) and argument.bit_length() > _MOST_BITS:
                    raise Unexpected(f"a number of more than {_MOST_BITS} bits")
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "STRING":  # protocol 0 escapes it, so that it cannot be read in place
                raise Unexpected("text of pickle protocol 0; write it again with protocol 2 or later")
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
            elif name == "EMPTY_DICT":
                stack.append(Items())
            elif name == "SETITEM":
                value, key = pop(), pop()
                set_items([key, value])
            elif name == "SETITEMS":
                set_items(pop_to_mark())
            elif name == "EMPTY_TUPLE":
                stack.append(())
            elif name == "TUPLE":
                stack.append(tuple(pop_to_mark()))
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                stack.append(tuple([pop() for _ in range(int(name[-1]))][::-1]))
            elif name == "GLOBAL":
                stack.append(str(argument).replace(" ", "."))
            elif name == "STACK_GLOBAL":
                function, module = text(data, pop()), text(data, pop())
                stack.append(f"{module}.{function}")
            elif name == "REDUCE":
                arguments, function = pop(), pop()
                stack.append(_checked_call(data, function, arguments, functions))
            elif name == "BUILD":
                state, made = pop(), pop()
                if not isinstance(made, Call | Items):
                    raise Unexpected("a state for something that is no object")
                stack.append(Built(made, state) if isinstance(made, Call) else made)  # attributes of a dict: not needed
            elif name == "BINPERSID":
                stack.append(Stored(pop()))
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                value = pop()
                memo[len(memo) if name == "MEMOIZE" else argument] = value
                stack.append(value)
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                if argument not in memo:
                    raise Unexpected("a reference to nothing")
                stack.append(memo[argument])
            elif name == "STOP":
                return pop(), file.tell()
            elif name not in _NOTHING_TO_DO:
                raise Unexpected(f"the instruction {name}")
    except (ValueError, EOFError, OverflowError, struct.error, AttributeError, TypeError) as error:
        raise Unexpected(f"a damaged pickle ({error})") from None
    raise Unexpected("a pickle that is cut short")


def text(data: Data, value: Any) -> str:
    """A string that stands for a name, of at most 1,000 bytes.

    Raises:
        Unexpected: `value` is something else.
    """
    if not isinstance(value, Slice) or value.stop - value.start > 1000:
        raise Unexpected("something else in place of a name")
    try:
        return data[value.start : value.stop].decode("utf-8")
    except UnicodeDecodeError:
        raise Unexpected("a name that is not UTF-8") from None


def content(data: Data, value: Slice) -> bytes:
    """The bytes of a string."""
    found = data[value.start : value.stop]
    return found.decode("utf-8").encode("latin-1") if value.is_text else found


_MARK = object()
_MOST_INSTRUCTIONS = 10_000_000  # a set of a million pairs needs fewer, and each may take memory
_MOST_BITS = 128
_BYTES = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "SHORT_BINSTRING": 1, "BINSTRING": 4, "BYTEARRAY8": 8}
_TEXT = {"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8}
_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NOTHING_TO_DO = {"PROTO", "FRAME"}


def _checked_call(data: Data, function: Any, arguments: Any, functions: Collection[str]) -> Any:
    if not isinstance(function, str):
        raise Unexpected("a call of something that is no function")
    if function not in functions or type(arguments) is not tuple:
        raise Unexpected(f"a call of {function!r}")
    if function == "_codecs.encode":
        if len(arguments) == 2 and isinstance(arguments[0], Slice) and text(data, arguments[1]) == "latin1":
            return arguments[0]
        raise Unexpected("an encoding other than latin1")
    if function == "collections.OrderedDict":
        pairs = arguments[0] if len(arguments) == 1 else []  # Python 2 hands over a list of [key, value]
        if len(arguments) > 1 or type(pairs) is not list or any(type(p) is not list or len(p) != 2 for p in pairs):
            raise Unexpected("an OrderedDict of something else than pairs")
        return Items((key, value) for key, value in pairs)
    return Call(function, arguments)
