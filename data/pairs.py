"""An evaluation set (NAME.bin) from a folder of images and a list of pairs."""

from pathlib import Path

import tqdm

from common.datasets.pair_sets import write_pair_set
from common.datasets.training_sets import IMAGE_SUFFIXES
from data.faces import read_pairs


def make_pairs(images: Path, pairs: Path, out: Path, overwrite: bool = False) -> Path:
    """Build NAME.bin from a pairs file in LFW's format, in its order; the encoded images stay as they are.

    Args:
        images: folder with Person/Person_0001.jpg (or .png ...), aligned.
        pairs: the pairs file.
        out: the file to write, for example datasets/casia/lfw.bin.
        overwrite: replace `out`.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: is there already; pass --overwrite to replace it")
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: expected a folder of images, found none")
    listed = [pair for fold in read_pairs(pairs) for pair in fold]
    names = [name for pair in listed for name in (pair.first, pair.second)]
    write_pair_set(
        out,
        (_find(images, name).read_bytes() for name in tqdm.tqdm(names, unit="images")),
        [pair.is_same for pair in listed],
    )
    print(f"{len(listed)} pairs, {sum(pair.is_same for pair in listed)} of them same")
    return out


def _find(folder: Path, name: str) -> Path:
    stem = folder / name
    for suffix in sorted(IMAGE_SUFFIXES):
        path = stem.with_name(stem.name + suffix)
        if path.is_file():
            return path
    raise FileNotFoundError(f"{stem}: expected an image ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
