"""Make an evaluation set (NAME.bin) from a folder of images and a list of pairs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.datasets.image_files import IMAGE_SUFFIXES, is_image
from common.datasets.pair_sets import LEAST_PAIRS
from common.io.files import read_regular
from data.faces import Pair, read_pairs, write_pairs

FOLDS = LEAST_PAIRS  # of `evaluate`, one pair a fold at least


def make_pairs(images: Path, pairs: Path, out: Path, overwrite: bool = False) -> Path:
    """Make NAME.bin from a pairs file, in its order; the encoded images are copied byte by byte.

    `evaluate` takes ten contiguous folds of one size. So ten folds of a file are kept; other numbers are not, which is
    said.

    Args:
        images: folder of aligned images, Person/Person_0001.jpg (or .png ...) for pairs in LFW's format. Those that are
            named by their path may have another suffix, or lie in a folder of their person.
        pairs: the pairs file: in LFW's format; or a line "path path 1" (same) or "path path 0" a pair, separated by
            commas, tabs or spaces; or two lines "path 1" or "path 0" a pair, as CPLFW's.
        out: the file to write, for example datasets/casia/lfw.bin.
        overwrite: replace `out`.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: is there already; pass --overwrite to replace it")
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: expected a folder of images, found none")
    folds = read_pairs(pairs)
    listed = [pair for fold in folds for pair in fold]
    for note in _notes(pairs, len(folds), listed):
        print(f"note: {note}")
    files = _files_of(images, pairs, listed)
    write_pairs(out, listed, lambda name: read_regular(files[name]))
    print(f"{len(listed)} pairs, {sum(pair.is_same for pair in listed)} of them same")
    return out


def _notes(path: Path, folds: int, pairs: list[Pair]) -> Iterator[str]:
    """What becomes of the folds of a file in `evaluate`."""
    if 1 < folds != FOLDS:
        yield f"{path}: has {folds} folds; they are not kept, as `evaluate` takes {FOLDS} contiguous ones of one size"
    if len(pairs) >= FOLDS:
        parts = np.array_split([pair.is_same for pair in pairs], FOLDS)
        if one_kind := sum(part.all() or not part.any() for part in parts):
            yield (
                f"{path}: in its order, {one_kind} of the {FOLDS} contiguous folds of `evaluate` have pairs of one "
                "kind only; let lines of the same and of different people alternate"
            )


def _files_of(images: Path, path: Path, pairs: list[Pair]) -> dict[str, Path]:
    """The file of each name; raises a FileNotFoundError that names the first pair without one, and counts them."""
    find = _Finder(images)
    found = {name: find(name) for pair in pairs for name in (pair.first, pair.second)}
    if missing := [place for place, pair in enumerate(pairs) if not (found[pair.first] and found[pair.second])]:
        first = pairs[missing[0]]
        name = first.second if found[first.first] else first.first
        raise FileNotFoundError(
            f"{images / name}: expected an image ({', '.join(sorted(IMAGE_SUFFIXES))}), found none; pair "
            f"{missing[0] + 1} of {path}, and {len(missing)} of its {len(pairs)} pairs lack one"
        )
    return {name: file for name, file in found.items() if file}


class _Finder:
    """Finds the image of a name, which may have another suffix, or lie in a folder of its person: Ann/Ann_1.jpg."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._listed: dict[Path, dict[str, Path]] = {}  # of each folder its images by their names without suffix

    def __call__(self, name: str) -> Path | None:
        path = self._folder / name
        if is_image(path) and path.is_file():
            return path
        bare = path.with_suffix("") if is_image(path) else path
        folders = (bare.parent, bare.parent / bare.name.rpartition("_")[0])
        return next((found for folder in folders if (found := self._images(folder).get(bare.name))), None)

    def _images(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listed:
            files = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
            self._listed[folder] = {path.stem: path for path in files if is_image(path) and path.is_file()}
        return self._listed[folder]
