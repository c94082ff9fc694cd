"""Make an evaluation set (NAME.bin) from a folder of images and a list of pairs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.datasets.pair_sets import LEAST_PAIRS
from common.datasets.training_sets import IMAGE_SUFFIXES, is_image
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
    write_pairs(out, listed, lambda name: read_regular(_find(images, name)))
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


def _find(folder: Path, name: str) -> Path:
    """The image of a name, which may have another suffix, or lie in a folder of its person: Ann_B/Ann_B_1.jpg."""
    stem = folder / name
    if is_image(stem) and stem.is_file():
        return stem
    bare = stem.with_suffix("") if is_image(stem) else stem
    for path in (bare, bare.parent / bare.name.rpartition("_")[0] / bare.name):
        for suffix in sorted(IMAGE_SUFFIXES):
            if path.with_name(path.name + suffix).is_file():
                return path.with_name(path.name + suffix)
        if path.parent.is_dir():
            for other in sorted(path.parent.iterdir()):  # .JPG
                if other.stem == path.name and is_image(other) and other.is_file():
                    return other
    raise FileNotFoundError(f"{stem}: expected an image ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
