"""Make an evaluation set (NAME.bin) from a folder of images and a list of pairs."""

from pathlib import Path

from common.datasets.training_sets import IMAGE_SUFFIXES, is_image
from common.io.files import read_regular
from data.faces import read_pairs, write_pairs


def make_pairs(images: Path, pairs: Path, out: Path, overwrite: bool = False) -> Path:
    """Make NAME.bin from a pairs file, in its order; the encoded images are copied byte by byte.

    Args:
        images: folder of aligned images Person/Person_0001.jpg (or .png ...).
        pairs: the pairs file: in LFW's format, or a line "path path 1" (same) or "path path 0" a pair; commas, tabs or
            spaces separate them.
        out: the file to write, for example datasets/casia/lfw.bin.
        overwrite: replace `out`.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: is there already; pass --overwrite to replace it")
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: expected a folder of images, found none")
    listed = [pair for fold in read_pairs(pairs) for pair in fold]
    write_pairs(out, listed, lambda name: read_regular(_find(images, name)))
    print(f"{len(listed)} pairs, {sum(pair.is_same for pair in listed)} of them same")
    return out


def _find(folder: Path, name: str) -> Path:
    stem = folder / name
    if is_image(stem) and stem.is_file():
        return stem
    for suffix in sorted(IMAGE_SUFFIXES):
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    if stem.parent.is_dir():
        for path in sorted(stem.parent.iterdir()):  # .JPG
            if path.stem == stem.name and is_image(path) and path.is_file():
                return path
    raise FileNotFoundError(f"{stem}: expected an image ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
