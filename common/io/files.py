"""Write files so that a crash, a full disk or a kill never leaves half a file under its real name; read JSON safely."""

import codecs
import contextlib
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

MOST_JSON_BYTES = 2**24  # the objects of a hostile file take thirty times as much memory
MOST_TEXT_BYTES = 2**30  # a list of ten million images
MOST_FILE_BYTES = 2**30  # of a file that is read at once
_NO_FILE = "a folder, device or pipe"
_MOST_AT_ONCE = 2**30  # Linux reads at most 2 GB at once


class CannotWrite(OSError):
    """A file cannot be written in the middle of long work. The message says what was lost, and what to do."""


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`. On success it is synced and renamed to `path`; on any error it is removed.

    Args:
        path: the file to create or replace; its folder is created if it is missing.
        mode: "wb", or "w" for text in UTF-8.

    Raises:
        OSError: the file cannot be written (no space, no permission); `path` stays as it was.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_write(folder / "notes.txt", "w") as file:
    ...     _ = file.write("whole")
    >>> [path.name for path in folder.iterdir()]
    ['notes.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)  # it cannot be read without setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_file(path.parent)


@contextlib.contextmanager
def atomic_pair(first: Path, second: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Write two files that belong together: both are replaced if the block ends well, else neither.

    A power cut between the two renames can still leave one new and one old file, so readers compare the two.
    """
    with atomic_write(second) as file_2, atomic_write(first) as file_1:
        yield file_1, file_2


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises:
        ValueError: a number is NaN or infinite; JSON has none of these.
        OSError: the file cannot be written.
    """
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path, what: str, limit: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file; it may have come from anywhere.
        what: what the file should hold, for error messages: "the settings of a run".
        limit: bytes; a longer file is not read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is longer than `limit`, is not JSON, is nested too deeply, or holds no object.

    >>> path = Path(tempfile.mkdtemp()) / "run.json"
    >>> write_json(path, {"steps": 20})
    >>> read_json(path, "the settings of a run")
    {'steps': 20}
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing; it should hold {what}, a JSON object")
    expected = f"{path}: expected {what}, a JSON object"
    content = read_regular(path, limit, f"{what}, a JSON object")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{expected} ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{expected}, got {type(value).__name__}")
    return value


def read_lines(path: Path, what: str, limit: int = MOST_TEXT_BYTES, errors: str = "strict") -> list[str]:
    """Read the lines of a text file: UTF-8, or UTF-16 with its mark, as Windows and spreadsheets write them.

    Args:
        path: the file; it may have come from anywhere.
        what: what the file should be, for error messages: "a pairs file".
        limit: bytes; a longer file is not read.
        errors: "surrogateescape" where names may be in another encoding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is longer than `limit`, or a line is no such text.

    >>> path = Path(tempfile.mkdtemp()) / "names.txt"
    >>> _ = path.write_bytes(b"\\xef\\xbb\\xbfann\\r\\nbob\\r\\n")
    >>> read_lines(path, "a list of names")
    ['ann', 'bob']
    """
    content = read_regular(require_file(path, what), limit, what)
    try:
        text = content.decode(encoding_of(content), errors)
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} line {number}: expected text in UTF-8 ({error}); save the file as UTF-8") from None
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path} line {number}: expected {what}, got a NUL byte")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def encoding_of(start: bytes) -> str:
    """The encoding of a text, by its first bytes."""
    return "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file; a device or a pipe, which may never end, is a ValueError that names it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path}: expected a regular file, found {_NO_FILE}")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, limit: int = MOST_FILE_BYTES, what: str = "a file") -> bytes:
    """The content of a regular file; a ValueError says that it is none, or has more than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path}: expected {what} of at most {limit} bytes, got {size}")
        return file.read(size)


class FileBytes:
    """The bytes of a regular file, read as they are asked for: `data[start:stop]`.

    It is not memory-mapped: a process dies if a file shrinks under a map. Here that is a ValueError that names the
    file. Any number of threads may read slices; `seek`, `tell`, `read` and `readline` are for one.

    >>> path = Path(tempfile.mkdtemp()) / "names.txt"
    >>> _ = path.write_bytes(b"ann, bob")
    >>> data = FileBytes(path)
    >>> len(data), data[:3], data[-3:]
    (8, b'ann', b'bob')
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, open_regular(path)
        self._size = os.fstat(self._file.fileno()).st_size
        self.seek, self.tell, self.readline = self._file.seek, self._file.tell, self._file.readline

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(self._size)
        parts = []
        while start < stop:
            part = os.pread(self._file.fileno(), min(stop - start, _MOST_AT_ONCE), start)
            if not part:
                raise ValueError(
                    f"{self._path}: expected {stop - start} bytes more at byte {start}; the file has shrunk"
                )
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def read(self, count: int) -> bytes:
        """Up to `count` bytes from the position on; however many are asked for, memory is taken for those there are."""
        return self._file.read(min(count, max(0, self._size - self.tell())))


def is_inside(name: str) -> bool:
    """Whether a path of a list names something below the folder that it starts from.

    >>> [is_inside(name) for name in ("ann/1.jpg", "..jpg", "../1.jpg", "/etc/passwd", ".", "")]
    [True, True, False, False, False, False]
    """
    parts = name.split("/")  # a list may have millions of them, for which pathlib takes ten times as long
    return parts[0] != "" and ".." not in parts and "\0" not in name and not {*parts} <= {"", "."}


def require_file(path: Path, what: str) -> Path:
    """Return `path`; raise a FileNotFoundError unless it is a file, with `what` it should be: "a record file"."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected {what}, found {_NO_FILE if path.exists() else 'none'}")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(paths: Sequence[Path], what: str) -> None:
    """Raise a FileNotFoundError that names the first missing file of a list, and counts the others."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: is missing, as are {len(missing) - 1} others of {what} on the list")


def file_stem(name: str) -> str:
    """Return `name`; raise a ValueError if it is empty, starts with a dot, or has a slash, a backslash or a NUL."""
    if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
        raise ValueError(f"expected a name that can be part of a file name, got {name!r}")
    return name


def sync_file(path: Path) -> None:
    """Wait until the contents of `path` are on the disk; of a folder, so that a rename inside survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
