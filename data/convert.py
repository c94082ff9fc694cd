"""From one kind of training set to another; the encoded images stay as they are, to the byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import tqdm

from common.datasets.training_sets import LIST, Dataset, Sample, open_dataset, write_records
from common.io.files import atomic_write
from data.output import new_folder

SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"P5": ".pgm", b"P6": ".ppm", b"RIFF": ".webp"}


def convert(source: Path, target: Path, kind: Literal["record", "list", "folder"], overwrite: bool = False) -> Path:
    """Convert a training set (record file, image list or image folder, whichever `source` is) to another kind.

    Args:
        source: folder of the set.
        target: folder to write.
        kind: of the set to write; a folder is named after its label, with zeros in front, so that labels stay.
        overwrite: replace `target`.
    """
    dataset = open_dataset(source)
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
    image = cv2.imdecode(np.frombuffer(first.encoded, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{first.name}: does not decode as an image")
    images = ((sample.encoded, sample.label) for sample in _samples(dataset, by_label, "write"))
    write_records(folder, images, dataset.num_classes, image.shape[0])


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
        raise ValueError("expected an image of every identity: folders without images would move the labels after them")


def _samples(dataset: Dataset, indices: range | np.ndarray, what: str) -> Iterator[Sample]:
    return (dataset.sample(int(index)) for index in tqdm.tqdm(indices, desc=what, unit="images"))


def _suffix(sample: Sample) -> str:
    for signature, suffix in SIGNATURES.items():
        if sample.encoded.startswith(signature):
            return suffix
    raise ValueError(f"{sample.name}: is no JPEG, PNG, BMP, PGM, PPM or WebP image")
