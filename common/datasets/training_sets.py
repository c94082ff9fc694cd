"""Training sets: a record file, an image list or image folders, all as encoded images with labels in a fixed order."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from common.datasets.records import RecordReader, RecordWriter
from common.io.files import atomic_write, require_file

Kind = Literal["auto", "record", "list", "folder"]

RECORD, PROPERTY, LIST = "train.rec", "property", "imgs.txt"
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp"})


class Sample(NamedTuple):
    """An encoded image, its class (0 .. num_classes - 1), and its name in error messages."""

    encoded: bytes
    label: int
    name: str


class Dataset(Protocol):
    """Training samples by index. Any number of threads may call `sample`."""

    num_classes: int

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Read sample 0 .. len - 1.

        Raises:
            ValueError, OSError: it is damaged, missing or has a label out of range; the message names it.
        """
        ...


def open_dataset(root: Path, kind: Kind = "auto") -> Dataset:
    """Open the training set in the folder `root`.

    Args:
        root: a folder with train.rec, train.idx and property (InsightFace's layout), or with imgs.txt, or with one
            folder an identity.
        kind: which of them; "auto" takes the first that is there.

    Raises:
        FileNotFoundError: there is no set of this kind; the message lists the names that were looked for.
        ValueError: the set is empty or damaged.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("ann", "bob"):
    ...     (root / name).mkdir()
    ...     _ = (root / name / "1.jpg").write_bytes(b"an image")
    >>> dataset = open_dataset(root)
    >>> len(dataset), dataset.num_classes, dataset.sample(1).encoded, dataset.sample(1).label
    (2, 2, b'an image', 1)
    """
    if not root.is_dir():
        raise FileNotFoundError(f"data.root: expected a folder at {root}, found none")
    return _READERS[_kind_of(root) if kind == "auto" else kind](root)


class RecordDataset:
    """InsightFace's layout: train.rec, property ("classes,height,width") and train.idx, which may be missing."""

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
        if not (0 <= labels[0] < self.num_classes and labels[0].is_integer()):  # NaN is in no range
            raise ValueError(
                f"{name}: expected a label 0 to {self.num_classes - 1} (as {PROPERTY} says), got {labels[0]}"
            )
        return Sample(image, int(labels[0]), name)

    def _image_rows(self) -> range:
        """Find the rows of the reader's keys that are images."""
        reader = self._reader
        first_key = int(reader.keys[0])
        record = reader.read(first_key)
        if record.flag == 0 or record.image:
            return range(len(reader))
        # the first record holds the key of the first identity record; all keys between the two are images
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


class FileDataset:
    """Images in files of their own.

    Args:
        root: folder.
        paths: paths of the images in `root`.
        labels: their classes, 0 .. num_classes - 1.
        num_classes: identities.
    """

    def __init__(self, root: Path, paths: list[str], labels: list[int], num_classes: int) -> None:
        self._root, self._paths, self._labels = root, paths, np.array(labels)
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self._paths)

    def sample(self, index: int) -> Sample:
        path = self._root / self._paths[index]
        return Sample(path.read_bytes(), int(self._labels[index]), str(path))


def read_list(root: Path) -> FileDataset:
    """Read imgs.txt: "path label" a line, with paths relative to the folder. A path may hold spaces, a label may not.

    Raises:
        FileNotFoundError: there is no imgs.txt.
        ValueError: a line is no path and label (named by its number), or there is none.
    """
    path = root / LIST
    paths, labels = [], []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise ValueError(f"{path} line {number}: expected a path and a label, got {line[:100]!r}")
        paths.append(name.strip())
        labels.append(int(label))
    if not labels:
        raise ValueError(f"{path}: expected a path and a label a line, found no lines")
    return FileDataset(root, paths, labels, max(labels) + 1)


def read_folder(root: Path) -> FileDataset:
    """Read one folder an identity; identities and their images are in the order of their names.

    Raises:
        ValueError: there is no folder, or one without images.
    """
    identities = sorted(path for path in root.iterdir() if path.is_dir())
    paths: list[str] = []
    labels: list[int] = []
    for label, identity in enumerate(identities):
        images = sorted(path for path in identity.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise ValueError(f"{identity}: expected images, found none; delete the folder if it is no identity")
        labels += [label] * len(images)
        paths += [f"{identity.name}/{image.name}" for image in images]
    if not paths:
        raise ValueError(f"{root}: expected one folder an identity, found none")
    return FileDataset(root, paths, labels, len(identities))


def image_files(folder: Path) -> list[Path]:
    """List the images in a folder and its subfolders, as paths relative to it, in the order of their names.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of images, found none")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise FileNotFoundError(f"{folder}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none")
    return sorted(found, key=lambda path: path.as_posix())


def samples(dataset: Dataset) -> Iterator[Sample]:
    """Read all samples in order."""
    return (dataset.sample(index) for index in range(len(dataset)))


def write_records(root: Path, images: Iterable[tuple[bytes, int]], num_classes: int, size: int) -> int:
    """Write train.rec, train.idx and property, as InsightFace's own reader expects them.

    Args:
        root: folder; it is created if it is missing.
        images: encoded images with labels 0 .. num_classes - 1; all images of a class follow each other.
        num_classes: identities.
        size: width and height of the images in pixels, for `property`.

    Returns:
        The number of images.

    Raises:
        ValueError: a label is out of range, or comes again after another; nothing is written then.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> write_records(root, [(b"ann 1", 0), (b"ann 2", 0), (b"bob 1", 1)], num_classes=2, size=112)
    3
    >>> [(sample.encoded, sample.label) for sample in samples(open_dataset(root))]
    [(b'ann 1', 0), (b'ann 2', 0), (b'bob 1', 1)]
    """
    ranges: dict[int, tuple[int, int]] = {}
    with RecordWriter(root / RECORD) as writer:
        writer.write_header(0, 0, 0)  # holds the place; its keys are known at the end
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


_READERS: dict[str, Callable[[Path], Dataset]] = {"record": RecordDataset, "list": read_list, "folder": read_folder}


def _kind_of(root: Path) -> str:
    for kind, name in (("record", RECORD), ("list", LIST)):
        if (root / name).exists():
            return kind
    if any(path.is_dir() for path in root.iterdir()):
        return "folder"
    raise FileNotFoundError(f"{root}: expected {RECORD}, or {LIST}, or one folder an identity; found none of them")


def _read_property(path: Path) -> int:
    text = _read_text(path).strip()
    fields = text.split(",")
    if len(fields) != 3 or not all(field.strip().isdecimal() for field in fields) or int(fields[0]) < 1:
        raise ValueError(f'{path}: expected "classes,height,width", got {text[:100]!r}')
    return int(fields[0])


def _read_text(path: Path) -> str:
    try:
        return require_file(path, "this file").read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error})") from None
