"""Writing files so that a crash, a full disk or a kill at any moment never leaves half a file under its real name.

And reading JSON, from anywhere, so that what is wrong with a file is said in one way.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MOST_JSON_BYTES = 2**24  # the objects of a hostile one take thirty times as much memory


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success sync it and rename it to `path`, on any error remove it.

    Args:
        path: the file to create or replace; its folder is created when missing.
        mode: "wb" or "w" (UTF-8).

    Raises:
        OSError: the file cannot be written (no space, no permission); `path` is then what it was before.
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
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def atomic_pair(first: Path, second: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """`atomic_write` of two files that belong together: both are replaced when the block ends well, else neither.

    (Between the two renames a power cut can still part them; readers compare the two.)
    """
    with atomic_write(second) as file_2, atomic_write(first) as file_1:
        yield file_1, file_2


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, allow_nan=False)
        file.write("\n")


def read_json(path: Path, what: str, limit: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        path: the file; it may have come from anywhere.
        what: the object should be, for the message of an error, as in "the settings of a run".
        limit: bytes; a longer file is not read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is longer, is not JSON, is nested too deeply, or holds something other than an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing; it should hold {what}, a JSON object")
    expected = f"{path}: expected {what}, a JSON object"
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{expected} of at most {limit} bytes, got {size}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{expected} ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{expected}, got {type(value).__name__}")
    return value


def file_stem(name: str) -> str:
    """`name`, after a check that it can be part of a file name; a ValueError says if not."""
    if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
        raise ValueError(f"expected a name that can be part of a file name, got {name!r}")
    return name


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Push what was written to `path` down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
