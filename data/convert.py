"""Convert a training set to another kind; the encoded images are copied byte by byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from common.datasets.images import decode_photo
from common.datasets.training_sets import LIST, Dataset, Sample, open_dataset, write_records
from common.io.files import atomic_write
from common.io.progress import tracked
from common.io.text import printable
from data.output import new_folder

SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"P5": ".pgm", b"P6": ".ppm", b"RIFF": ".webp"}


def convert(source: Path, target: Path, kind: Literal["record", "list", "folder"], overwrite: bool = False) -> Path:
    """Convert a training set (record file, image list or image folders, as it is found) to another kind.

    Args:
        source: folder of the set.
        target: folder to write.
        kind: kind of the set to write. For "folder", each folder is named by its label with leading zeros, so that the
            labels stay the same.
        overwrite: replace `target`.
    """
    dataset = open_dataset(source)
    for note in dataset.notes:
        print(printable(f"note: {note}"))
    with new_folder(target, overwrite) as folder:
        if kind == "record":
            _write_records(dataset, folder)
        else:
            _write_files(dataset, folder, with_list=kind == "list")
    print(f"{len(dataset)} images of {dataset.num_classes} identities")
    return target


def _write_records(dataset: Dataset, folder: Path) -> None:
    labels = [sample.label for sample in _samples(dataset, range(len(dataset)), "read labels")]
    by_label = np.argsort(labels, kind="stable")  # record files hold the images of an identity in a row
    first = dataset.sample(int(by_label[0]))
    size = decode_photo(first.encoded, first.name).shape[0]
    images = ((sample.encoded, sample.label) for sample in _samples(dataset, by_label, "write"))
    write_records(folder, images, dataset.num_classes, size)


def _write_files(dataset: Dataset, folder: Path, with_list: bool) -> None:
    digits = len(str(max(len(dataset), dataset.num_classes)))
    lines = []
    for number, sample in enumerate(_samples(dataset, range(len(dataset)), "write")):
        path = Path(f"{sample.label:0{digits}d}") / f"{number:0{digits}d}{_suffix(sample)}"
        (folder / path.parent).mkdir(exist_ok=True)
        (folder / path).write_bytes(sample.encoded)
        lines.append(f"{path.as_posix()} {sample.label}\n")
    if with_list:
        with atomic_write(folder / LIST, "w") as file:
            file.writelines(lines)
    elif len({line.split("/")[0] for line in lines}) != dataset.num_classes:
        raise ValueError(
            "expected an image of every identity, as a missing folder would change the labels after it; "
            "convert to list or record instead"
        )


def _samples(dataset: Dataset, indices: range | np.ndarray, what: str) -> Iterator[Sample]:
    return (dataset.sample(int(index)) for index in tracked(indices, what, "images"))


def _suffix(sample: Sample) -> str:
    for signature, suffix in SIGNATURES.items():
        if sample.encoded.startswith(signature):
            return suffix
    raise ValueError(f"{sample.name}: is no JPEG, PNG, BMP, PGM, PPM or WebP image")
