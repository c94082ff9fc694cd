"""A folder that appears whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Build a folder beside `path`; when the block ends well it takes that name, else it is removed.

    Raises:
        FileExistsError: `path` is there, not empty, and not to be overwritten; it stays as it is.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path}: expected a folder or nothing, found a file")
    is_taken = path.exists() and any(path.iterdir())
    if is_taken and not overwrite:
        raise FileExistsError(f"{path}: is not empty; pass --overwrite to replace it")
    building, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for leftover in (building, old):  # of a run that was killed
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
