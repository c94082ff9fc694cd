"""Training sets: record file, image list, image folder. All give encoded images with labels, in a fixed order."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from common.datasets.records import RecordReader, RecordWriter
from common.io.files import atomic_write

Kind = Literal["auto", "record", "list", "folder"]

RECORD, PROPERTY, LIST = "train.rec", "property", "imgs.txt"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp"})


class Sample(NamedTuple):
    """An image as it is stored, its class, and what to call it in errors."""

    encoded: bytes
    label: int
    name: str


class Dataset(Protocol):
    """Training samples by index; any number of threads may call `sample`."""

    num_classes: int

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Sample 0 .. len - 1; a ValueError or OSError names one that is damaged or has a label out of range."""
        ...


def open_dataset(root: Path, kind: Kind = "auto") -> Dataset:
    """The training set in the folder `root`.

    Args:
        root: with train.rec, train.idx and property (InsightFace's layout), or imgs.txt, or one folder an identity.
        kind: which of them; "auto" takes the first that is there.

    Raises:
        FileNotFoundError: nothing of the kind is there; lists what was looked for.
        ValueError: it is empty or damaged.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: expected a folder at {root}, found none")
    if kind == "record" or (kind == "auto" and (root / RECORD).exists()):
        return RecordDataset(root)
    if kind == "list" or (kind == "auto" and (root / LIST).exists()):
        return ListDataset(root)
    if kind == "folder" or any(path.is_dir() for path in root.iterdir()):
        return FolderDataset(root)
    raise FileNotFoundError(f"{root}: expected {RECORD}, or {LIST}, or one folder an identity; found none of them")


class RecordDataset:
    """InsightFace's layout: train.rec, train.idx (missing: one scan) and property ("classes,height,width")."""

    def __init__(self, root: Path) -> None:
        self._reader = RecordReader(root / RECORD)
        self._name = str(self._reader.path)
        self.num_classes = _read_property(root / PROPERTY)
        self._rows = self._image_rows()
        if not self._rows:
            raise ValueError(f"{self._reader.path}: holds no images")

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, index: int) -> Sample:
        row = self._rows[index]
        _, labels, image = self._reader.read_at(row)
        name = f"{self._name} key {self._reader.keys.item(row)}"
        if not image:
            raise ValueError(f"{name}: expected an image, got a record without one")
        return Sample(image, _checked_label(labels[0], self.num_classes, name), name)

    def _image_rows(self) -> range:
        """Places of the images in the reader's keys."""
        reader = self._reader
        first_key = int(reader.keys[0])
        record = reader.read(first_key)
        if record.flag == 0 or record.image:
            return range(len(reader))
        # keys first_key + 1 .. first identity record - 1 are images
        if len(record.labels) < 1 or not record.labels[0].is_integer():
            raise ValueError(
                f"{reader.path} key {first_key}: expected the key of the first identity, got {record.labels}"
            )
        end = int(record.labels[0])
        rows = range(1, int(reader.keys.searchsorted(end)))
        if len(rows) != max(0, end - first_key - 1):
            raise ValueError(
                f"{reader.path}: its first record says that keys {first_key + 1} to {end - 1} are images, but the "
                f"index has {len(rows)} of these {end - first_key - 1}; the file or its index is cut short"
            )
        return rows


class ListDataset:
    """imgs.txt: "path label" a line, paths relative to the folder; a path may hold spaces, a label may not."""

    def __init__(self, root: Path) -> None:
        self._root, path = root, root / LIST
        self._paths, labels = [], []
        for number, line in enumerate(_read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            name, _, label = line.strip().rpartition(" ")
            if not name or not label.isdecimal():
                raise ValueError(f"{path} line {number}: expected a path and a label, got {line[:100]!r}")
            self._paths.append(name.strip())
            labels.append(int(label))
        if not labels:
            raise ValueError(f"{path}: lists no images")
        self._labels = np.array(labels)
        self.num_classes = int(self._labels.max()) + 1

    def __len__(self) -> int:
        return len(self._paths)

    def sample(self, index: int) -> Sample:
        path = self._root / self._paths[index]
        return Sample(path.read_bytes(), int(self._labels[index]), str(path))


class FolderDataset:
    """One folder an identity; identities and their images in the order of their names."""

    def __init__(self, root: Path) -> None:
        identities = sorted(path for path in root.iterdir() if path.is_dir())
        self._paths: list[Path] = []
        self._labels: list[int] = []
        for label, identity in enumerate(identities):
            images = sorted(path for path in identity.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            if not images:
                raise ValueError(f"{identity}: expected images, found none; delete the folder if it is no identity")
            self._labels += [label] * len(images)
            self._paths += images
        if not self._paths:
            raise ValueError(f"{root}: expected one folder an identity, found none")
        self.num_classes = len(identities)

    def __len__(self) -> int:
        return len(self._paths)

    def sample(self, index: int) -> Sample:
        path = self._paths[index]
        return Sample(path.read_bytes(), self._labels[index], str(path))


def image_files(folder: Path) -> list[Path]:
    """Images in a folder and all folders in it, relative to it, in the order of their names.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of images, found none")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    return sorted(found, key=lambda path: path.as_posix())


def samples(dataset: Dataset) -> Iterator[Sample]:
    """All samples in order."""
    return (dataset.sample(index) for index in range(len(dataset)))


def write_records(root: Path, images: Iterable[tuple[bytes, int]], num_classes: int, size: int) -> int:
    """Write train.rec, train.idx and property, as InsightFace's own reader expects them.

    Args:
        root: folder; made when missing.
        images: encoded images with labels 0 .. num_classes - 1; all images of a class in a row.
        num_classes: identities.
        size: width and height of the images, for `property`.

    Returns:
        How many images there were.

    Raises:
        ValueError: a label is out of range, or a class comes twice; nothing is written then.
    """
    ranges: dict[int, tuple[int, int]] = {}
    with RecordWriter(root / RECORD) as writer:
        writer.write_header(0, 0, 0)  # its place; what it says is known at the end
        key = 1
        for image, label in images:
            if not 0 <= label < num_classes:
                raise ValueError(f"image {key - 1}: expected a label 0 to {num_classes - 1}, got {label}")
            first, end = ranges.get(label, (key, key))
            if end != key:
                raise ValueError(f"image {key - 1}: label {label} comes again after other labels; sort by label first")
            ranges[label] = (first, key + 1)
            writer.write_image(key, label, image)
            key += 1
        for number, label in enumerate(sorted(ranges)):
            writer.write_header(key + number, *ranges[label])
        writer.rewrite_first_header(0, key, key + len(ranges))
    with atomic_write(root / PROPERTY, "w") as file:
        file.write(f"{num_classes},{size},{size}\n")
    return key - 1


def _read_property(path: Path) -> int:
    text = _read_text(path).strip()
    fields = text.split(",")
    if len(fields) != 3 or not all(field.strip().isdecimal() for field in fields) or int(fields[0]) < 1:
        raise ValueError(f'{path}: expected "classes,height,width", got {text[:100]!r}')
    return int(fields[0])


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected this file, found none")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error})") from None


def _checked_label(value: float, num_classes: int, name: str) -> int:
    if not (0 <= value < num_classes and value == int(value)):  # NaN is in no range
        raise ValueError(f"{name}: expected a label 0 to {num_classes - 1} (as {PROPERTY} says), got {value}")
    return int(value)
