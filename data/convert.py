"""Convert a training set to another kind; the encoded images are copied byte by byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from common.datasets.images import BadImage, decode_photo
from common.datasets.training_sets import LIST, Dataset, Sample, open_dataset, write_people, write_records
from common.io.files import atomic_write
from common.io.progress import tracked
from common.io.text import printable
from common.weights.checkpoint import first_few
from data.output import new_folder

SIGNATURES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"P5": ".pgm", b"P6": ".ppm", b"RIFF": ".webp"}
SIGNATURES |= {b"II*\0": ".tif", b"MM\0*": ".tif", b"\0\0\0\x0cjP  ": ".jp2"}


def convert(
    source: Path,
    target: Path,
    kind: Literal["record", "list", "folder"],
    on_bad_image: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
) -> Path:
    """Convert a training set (record file, image list or image folders, as it is found) to another kind.

    The names of people, which are those of the folders or in labels.txt, are written to labels.txt, a line a label.

    Args:
        source: folder of the set.
        target: folder to write.
        kind: kind of the set to write. For "folder", each folder is named by its label with leading zeros, so that the
            labels stay the same.
        on_bad_image: what to do with images that do not decode: stop before anything is written, or leave them out.
        overwrite: replace `target`.
    """
    dataset = open_dataset(source)
    for note in dataset.notes:
        print(printable(f"note: {note}"))
    labels, size, bad, others = _look(dataset)
    if bad:
        said = f"{len(bad)} of {len(dataset)} images do not decode: {first_few(list(bad.values()), 3)}"
        if on_bad_image == "fail" or len(bad) == len(dataset):
            raise ValueError(f"{source}: {said}; --on-bad-image skip leaves them out")
        print(printable(f"left out: {said}"))
    if others:
        print(printable(f"note: {len(others)} images are not {size[0]}x{size[1]}: {first_few(others, 3, ', ')}"))
    places = np.array([place for place in range(len(dataset)) if place not in bad])
    with new_folder(target, overwrite) as folder:
        if kind == "record":
            by_label = places[np.argsort(np.array(labels)[places], kind="stable")]  # they hold an identity in a row
            images = ((sample.encoded, sample.label) for sample in _samples(dataset, by_label, "write"))
            write_records(folder, images, dataset.num_classes, size[1])
        else:
            _write_files(dataset, places, folder, with_list=kind == "list")
        write_people(folder, dataset.people)
    print(f"{len(places)} images of {dataset.num_classes} identities")
    return target


class _Look(NamedTuple):
    """What a pass over all images finds."""

    labels: list[int]
    size: tuple[int, int]  # width and height of the first image that decodes
    bad: dict[int, str]  # why an image does not decode, with its name, by place
    others: list[str]  # names of images of another size


def _look(dataset: Dataset) -> _Look:
    found = _Look([], (0, 0), {}, [])
    for place, sample in enumerate(_samples(dataset, range(len(dataset)), "check")):
        found.labels.append(sample.label)
        try:
            height, width, _ = decode_photo(sample.encoded, sample.name).shape
        except BadImage as error:
            found.bad[place] = str(error)
            continue
        if found.size == (0, 0):
            found = found._replace(size=(width, height))
        elif found.size != (width, height):
            found.others.append(f"{sample.name} {width}x{height}")
    return found


def _write_files(dataset: Dataset, places: np.ndarray, folder: Path, with_list: bool) -> None:
    digits = len(str(max(len(dataset), dataset.num_classes)))
    lines = []
    for number, sample in enumerate(_samples(dataset, places, "write")):
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
    raise ValueError(f"{sample.name}: expected one of {', '.join(sorted({*SIGNATURES.values()}))}, got another format")
