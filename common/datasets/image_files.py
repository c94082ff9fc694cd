"""Which files of a folder are images, and which folders are identities; what systems leave behind is neither."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.io.text import printable

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".pgm", ".ppm", ".webp", ".tif", ".tiff", ".jp2"})
PEOPLE = "labels.txt"
_OURS = ("left_out.txt", "align.json", PEOPLE)
_LEFTOVERS = frozenset({"@eaDir", "__MACOSX"})  # thumbnails of file systems; so are names with a dot first


def image_files(folder: Path) -> list[Path]:
    """List the images in a folder and its subfolders, as paths relative to it, in the order of their names.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of images, found none")
    files = [path for path in _files_below(folder) if path.name not in _OURS]
    found = [path.relative_to(folder) for path in files if is_image(path)]
    if not found:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    for note in note_of(folder, [path.relative_to(folder).as_posix() for path in files if not is_image(path)]):
        print(printable(f"note: {note}"))
    return sorted(found, key=lambda path: path.as_posix())


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name; "._NAME.jpg", which macOS leaves beside each file, is none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_leftover(path.name)


def identity_folders(root: Path) -> list[Path]:
    """The folders of a folder set, one an identity, in the order of their names."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_leftover(path.name))


def is_leftover(name: str) -> bool:
    """Whether a file or a folder of this name was left behind by a system or a program."""
    return name.startswith(".") or name in _LEFTOVERS


def note_of(folder: Path, passed_over: Sequence[str]) -> list[str]:
    """A note of what was passed over, the first few by name; none if nothing was."""
    if not passed_over:
        return []
    named = ", ".join(map(ascii, passed_over[:3])) + (" ..." if len(passed_over) > 3 else "")
    return [f"{folder}: passed over as no images: {len(passed_over)} ({named})"]


def _files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, also through links to folders, each real folder once; not those of leftovers."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if not is_leftover(name))
        if real not in seen:
            yield from (Path(root, name) for name in files)
        seen.add(real)
