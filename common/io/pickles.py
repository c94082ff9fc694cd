"""Read pickles without running them.

A pickle is a program for a machine with a stack. `pickletools` lists its instructions. `follow` carries out the few
that build lists, dicts, arrays and tensors, and refuses all others. It imports nothing and calls nothing: a function
stays a name, and a call becomes a `Call`. Strings are not copied: a `Slice` says where each one lies, so a file of any
size takes next to no memory.
"""

import io
import pickletools
import struct
from collections.abc import Callable, Collection
from typing import IO, Any, NamedTuple, cast

from common.io.files import FileBytes

Data = FileBytes | bytes


class Unexpected(Exception):
    """The pickle holds something that no file of its kind holds. The message completes "expected ..., found"."""


class Slice(NamedTuple):
    """A string of the file, as byte offsets: data[start:stop].

    is_text: the bytes are UTF-8. Python 3 also stores bytes that way in protocol 2: each byte as one Latin-1 character.
    """

    start: int
    stop: int
    is_text: bool = False


class Call(NamedTuple):
    """A call that the pickle asks for; it is not made."""

    function: str
    arguments: Any


class Built(NamedTuple):
    """An object, and the state that the pickle asks to give it."""

    made_by: Call
    state: Any


class Stored(NamedTuple):
    """An object that lies outside the pickle, by its persistent id."""

    identity: Any


class Items(list[tuple[Any, Any]]):
    """The keys and values of a dict or an OrderedDict, in order."""


def follow(data: Data, functions: Collection[str], start: int = 0) -> tuple[Any, int]:
    """Follow the pickle that starts at byte `start`.

    Args:
        data: bytes, or those of a file.
        functions: names of the functions that the pickle may call, such as "numpy.ndarray".
        start: byte offset.

    Returns:
        The value that the pickle describes, and the byte offset of its end. In the value, a string of the file is a
        `Slice`, a function is its name (str), a dict is `Items`, and a call is a `Call`, or a `Built` with its state.

    Raises:
        Unexpected: the pickle is damaged or cut short, has an instruction that is not known here, or calls another
            function.

    >>> import pickle
    >>> data = pickle.dumps({"sizes": [3, 4]}, protocol=4)
    >>> value, end = follow(data, functions=())
    >>> [(text(data, key), item) for key, item in value], end == len(data)
    ([('sizes', [3, 4])], True)
    >>> follow(pickle.dumps(print, protocol=4), ())[0]
    'builtins.print'
    """
    machine = _Machine(data, functions)
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    file.seek(start)
    try:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(cast(IO[bytes], file))):
            name = opcode.name
            if count == _MOST_INSTRUCTIONS:
                raise Unexpected(f"more than {_MOST_INSTRUCTIONS} instructions")
            if name == "STOP":
                return machine.pop(), file.tell()
            if name in _STRINGS:
                machine.stack.append(Slice(int(place or 0) + 1 + _STRINGS[name], file.tell(), "UNICODE" in name))
            elif name in _INSTRUCTIONS:
                machine.stack.append(_INSTRUCTIONS[name](machine, argument))
            elif name not in _NOTHING_TO_DO:
                raise Unexpected(_REFUSED.get(name, f"the instruction {name}"))
    except (ValueError, EOFError, OverflowError, struct.error, AttributeError, TypeError) as error:
        raise Unexpected(f"a damaged pickle ({error})") from None
    raise Unexpected("a pickle that is cut short")


def text(data: Data, value: Any) -> str:
    """Read a name: a string of at most 1,000 bytes of UTF-8.

    Raises:
        Unexpected: `value` is no such string.
    """
    if not isinstance(value, Slice) or value.stop - value.start > 1000:
        raise Unexpected("something else in place of a name")
    try:
        return data[value.start : value.stop].decode("utf-8")
    except UnicodeDecodeError:
        raise Unexpected("a name that is not UTF-8") from None


def content(data: Data, value: Slice) -> bytes:
    """Read the bytes of a string.

    Raises:
        ValueError: a text in place of bytes is not UTF-8, or has a character beyond Latin-1.
    """
    found = data[value.start : value.stop]
    return found.decode("utf-8").encode("latin-1") if value.is_text else found


_NUMPY = ("numpy.core.multiarray.", "numpy._core.multiarray.", "numpy.core.numeric.", "numpy._core.numeric.")
NUMPY_FUNCTIONS = frozenset(
    {"_codecs.encode", "numpy.dtype", *(module + name for module in _NUMPY for name in ("_reconstruct", "_frombuffer"))}
)
"""Functions that a pickle of NumPy arrays calls."""
NUMPY_SCALARS = frozenset(module + "scalar" for module in _NUMPY)
"""Functions that a pickle of NumPy scalars calls, with a dtype and the bytes of the number."""


class PickledArray(NamedTuple):
    """The parts of a pickled NumPy array; none of them is checked."""

    raw: Any  # its bytes: a Slice
    shape: Any
    dtype: Any
    is_fortran: bool


def numpy_array(data: Data, value: Any) -> PickledArray | None:
    """Take a pickled NumPy array apart: a `Built` _reconstruct, or a `Call` of _frombuffer. None: it is no array."""
    if isinstance(value, Built) and value.made_by.function.endswith("._reconstruct"):
        if type(value.state) is tuple and len(value.state) == 5:
            _, shape, dtype, is_fortran, raw = value.state
            return PickledArray(raw, shape, dtype, bool(is_fortran))
    elif isinstance(value, Call) and value.function.endswith("._frombuffer") and len(value.arguments) == 4:
        raw, dtype, shape, order = value.arguments
        return PickledArray(raw, shape, dtype, text(data, order) == "F")
    return None


def numpy_dtype(data: Data, value: Any) -> str | None:
    """Read the name in a call of numpy.dtype, such as "f4", whatever its state says. None: it is no such call."""
    made_by = value.made_by if isinstance(value, Built) else value
    if isinstance(made_by, Call) and made_by.function == "numpy.dtype" and made_by.arguments:
        return text(data, made_by.arguments[0])
    return None


_MARK = object()
_MOST_INSTRUCTIONS = 10_000_000  # a set of a million pairs needs fewer; each may take memory
_MOST_BITS = 128


class _Machine:
    """The stack and the memo, and the instructions that need more than a line.

    Each instruction takes its arguments from the stack and returns one value, which `follow` puts there.
    """

    def __init__(self, data: Data, functions: Collection[str]) -> None:
        self.data, self.functions = data, functions
        self.stack: list[Any] = []
        self.memo: dict[Any, Any] = {}
        self.copied = 0

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise Unexpected("an instruction without its argument")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                items = self.stack[position + 1 :]
                del self.stack[position:]
                return items
        raise Unexpected("an end without a beginning")

    def number(self, value: int | float) -> int | float:
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise Unexpected(f"a number of more than {_MOST_BITS} bits")
        return value

    def append(self, items: list[Any]) -> Any:
        if not self.stack or type(self.stack[-1]) is not list:
            raise Unexpected("items for something that is no list")
        self.stack[-1].extend(items)
        return self.stack.pop()

    def set_items(self, items: list[Any]) -> Any:
        if not self.stack or type(self.stack[-1]) is not Items or len(items) % 2:
            raise Unexpected("keys and values for something that is no dict")
        self.stack[-1].extend(zip(items[::2], items[1::2], strict=True))
        return self.stack.pop()

    def last(self, count: int) -> tuple[Any, ...]:
        """The last values of the stack, in the order in which they were put there."""
        return tuple([self.pop() for _ in range(count)][::-1])

    def name(self) -> str:
        function, module = text(self.data, self.pop()), text(self.data, self.pop())
        return f"{module}.{function}"

    def call(self) -> Any:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, str):
            raise Unexpected("a call of something that is no function")
        if function not in self.functions or type(arguments) is not tuple:
            raise Unexpected(f"a call of {function!r}")
        if function == "_codecs.encode":
            return _encoded(self.data, arguments)
        if function == "collections.OrderedDict":
            items = _ordered_dict(arguments)
            self.copied += len(items)  # of lists that the pickle may name again and again
            if self.copied > len(self.data):
                raise Unexpected("more values than the file has bytes")
            return items
        return Call(function, arguments)

    def build(self) -> Any:
        state, made = self.pop(), self.pop()
        if not isinstance(made, Call | Items):
            raise Unexpected("a state for something that is no object")
        return Built(made, state) if isinstance(made, Call) else made  # attributes of a dict are not needed

    def remember(self, place: int) -> Any:
        self.memo[place] = value = self.pop()
        return value

    def remembered(self, place: int) -> Any:
        if place not in self.memo:
            raise Unexpected("a reference to nothing")
        return self.memo[place]


_Instruction = Callable[[_Machine, Any], Any]


def _each(names: str, instruction: _Instruction) -> dict[str, _Instruction]:
    return dict.fromkeys(names.split(), instruction)


_INSTRUCTIONS: dict[str, _Instruction] = {
    **_each("INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT", _Machine.number),
    "NONE": lambda machine, _: None,
    "NEWTRUE": lambda machine, _: True,
    "NEWFALSE": lambda machine, _: False,
    "MARK": lambda machine, _: _MARK,
    "EMPTY_LIST": lambda machine, _: [],
    "LIST": lambda machine, _: machine.pop_to_mark(),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: Items(),
    "SETITEM": lambda machine, _: machine.set_items([*machine.last(2)]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "EMPTY_TUPLE": lambda machine, _: (),
    "TUPLE": lambda machine, _: tuple(machine.pop_to_mark()),
    "TUPLE1": lambda machine, _: machine.last(1),
    "TUPLE2": lambda machine, _: machine.last(2),
    "TUPLE3": lambda machine, _: machine.last(3),
    "GLOBAL": lambda machine, argument: str(argument).replace(" ", "."),
    "STACK_GLOBAL": lambda machine, _: machine.name(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: Stored(machine.pop()),
    **_each("PUT BINPUT LONG_BINPUT", _Machine.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    **_each("GET BINGET LONG_BINGET", _Machine.remembered),
}
_STRINGS = {  # bytes of the length that precedes the string
    **{"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8, "SHORT_BINSTRING": 1, "BINSTRING": 4},
    **{"SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8},
}
_NOTHING_TO_DO = {"PROTO", "FRAME"}
_REFUSED = {  # its escapes cannot be read in place
    "STRING": "text of pickle protocol 0; write it again with protocol 2 or later"
}


def _encoded(data: Data, arguments: tuple[Any, ...]) -> Slice:
    """Bytes in protocol 2, as Python 3 writes them: the call encode(text, "latin1")."""
    if len(arguments) == 2 and isinstance(arguments[0], Slice) and text(data, arguments[1]) == "latin1":
        return arguments[0]
    raise Unexpected("an encoding other than latin1")


def _ordered_dict(arguments: tuple[Any, ...]) -> Items:
    """Empty, or of one list of lists [key, value], as Python 2 writes it."""
    pairs = arguments[0] if len(arguments) == 1 else []
    if len(arguments) > 1 or type(pairs) is not list or any(type(p) is not list or len(p) != 2 for p in pairs):
        raise Unexpected("an OrderedDict of something else than pairs")
    return Items((key, value) for key, value in pairs)
