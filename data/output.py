"""Output folders that appear whole or not at all, and checks of options."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Build a folder beside `path`. It is renamed to `path` if the block ends well, else it is removed.

    Raises:
        FileExistsError: `path` is a file, or is not empty while `overwrite` is false; it stays as it is.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: expected a folder or nothing, found a file")
    is_taken = path.exists() and any(path.iterdir())
    if is_taken and not overwrite:
        raise FileExistsError(f"{path}: is not empty; pass --overwrite to replace it")
    building, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (building, old):  # from a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        yield building
        if path.exists():
            path.rename(old)
        building.rename(path)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_at_least(*options: tuple[str, int, int]) -> None:
    """Check options that are given as (name, value, least value).

    Raises:
        ValueError: a value is too small; the message names the option.
    """
    for name, value, least in options:
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
