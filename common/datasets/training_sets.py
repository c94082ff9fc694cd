"""Training sets: a record file, an image list or image folders, all as encoded images with labels in a fixed order."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from common.datasets.image_files import PEOPLE, identity_folders, is_image, is_leftover, note_of
from common.datasets.records import EXACT_KEYS, RecordReader, RecordWriter
from common.io.files import atomic_write, is_inside, read_lines, read_regular
from common.io.rows import HEADER, cells, each_row, path_and_numbers
from common.io.text import printable

Kind = Literal["auto", "record", "list", "folder"]

RECORD, PROPERTY, LIST = "train.rec", "property", "imgs.txt"
MOST_CLASSES = 100  # an image: with more, labels are numbers of something else


class Sample(NamedTuple):
    """An encoded image, its class (0 .. num_classes - 1), and its name in error messages."""

    encoded: bytes
    label: int
    name: str


class Dataset(Protocol):
    """Training samples by index. Any number of threads may call `sample`.

    Attributes:
        num_classes: C.
        notes: what a user should know, a sentence each: what was passed over, classes without an image.
        people: C names, or none where they are not known.
        fingerprint: "keys SHA" or "labels SHA", which another set of as many images hardly has.
    """

    num_classes: int
    notes: list[str]
    people: list[str]
    fingerprint: str

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
        check_classes(root / PROPERTY, self.num_classes, len(self._rows))
        self.notes = [self._reader.note] if self._reader.note else []
        self.people, notes = _read_people(root, self.num_classes)
        self.notes += notes
        self.fingerprint = f"keys {_digest(self._reader.keys[self._rows.start : self._rows.stop])}"

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
        end = self._first_identity(int(record.labels[0]))
        rows = range(1, int(reader.keys.searchsorted(end)))
        if len(rows) != max(0, end - first_key - 1):
            raise ValueError(
                f"{reader.path}: its first record says that keys {first_key + 1} to {end - 1} are images, but the "
                f"index has {len(rows)} of these {end - first_key - 1}; the file or its index is cut short"
            )
        return rows

    def _first_identity(self, key: int) -> int:
        """The key of the first identity record, near `key`: from 2**24 on, the float32 in the file is rounded."""
        if key < EXACT_KEYS:
            return key
        error = int(np.spacing(np.float32(key)))
        first, last = self._reader.keys.searchsorted([key - error, key + error + 1])
        rows = (row for row in range(max(1, int(first)), int(last)) if not self._reader.read_at(row).image)
        return next((int(self._reader.keys[row]) for row in rows), key)


class FileDataset:
    """Images in files of their own.

    Args:
        root: folder.
        paths: paths of the images in `root`.
        labels: their classes, 0 .. num_classes - 1.
        num_classes: identities.
        notes: as in `Dataset`.
        people: as in `Dataset`, where labels.txt does not say it.
    """

    def __init__(
        self,
        root: Path,
        paths: list[str],
        labels: list[int],
        num_classes: int,
        notes: Sequence[str] = (),
        people: Sequence[str] = (),
    ) -> None:
        self._root, self._paths, self._labels = root, paths, np.array(labels)
        self.num_classes = num_classes
        named, others = _read_people(root, num_classes)
        self.people = named or list(people)
        self.notes = [*notes, *others]
        self.fingerprint = f"labels {_digest(self._labels)}"
        self._listed_in = root / LIST if (root / LIST).exists() else root

    def __len__(self) -> int:
        return len(self._paths)

    def sample(self, index: int) -> Sample:
        path = self._root / self._paths[index]
        try:
            return Sample(read_regular(path), int(self._labels[index]), str(path))
        except OSError as error:
            raise type(error)(
                f"{path}: cannot be read ({error.strerror}), image {index} of {self._listed_in}"
            ) from None


def read_list(root: Path) -> FileDataset:
    """Read imgs.txt: "path label" a line, with paths relative to the folder, which may hold spaces; also as CSV.

    Raises:
        FileNotFoundError: there is no imgs.txt, or an image of it is missing: the first by its line, and how many.
        ValueError: a line is no path below the folder and label (named by its number), there is none, or the labels are
            numbers of something else than classes.
    """
    path = root / LIST
    paths, labels, lines = [], [], []
    for number, line in each_row(path, "lines of a path and a label"):
        if number == 1 and HEADER.match(line) and path_and_numbers(line, 1) is None:
            continue
        name, (label,) = path_and_numbers(line, 1) or ("", [""])
        if not (label.isascii() and label.isdecimal() and len(label) < 19):
            raise ValueError(f"{path} line {number}: expected a path and a label, got {line[:100]!r}")
        if not is_inside(name):
            raise ValueError(f"{path} line {number}: expected a path below {root}, got {name[:100]!r}")
        paths.append(name)
        labels.append(int(label))
        lines.append(number)
    if not labels:
        raise ValueError(f"{path}: expected a path and a label a line, found no lines")
    num_classes = max(labels) + 1
    check_classes(path, num_classes, len(labels))
    if missing := _missing(root, paths):
        raise FileNotFoundError(
            f"{path} line {lines[missing[0]]}: {root / paths[missing[0]]} is missing or no file; of the {len(paths)} "
            f"images, {len(missing)} are"
        )
    empty = num_classes - len(set(labels))
    notes = [f"{path}: {empty} of the classes 0 to {num_classes - 1} have no image"] if empty else []
    return FileDataset(root, paths, labels, num_classes, notes)


def read_folder(root: Path) -> FileDataset:
    """Read one folder an identity; identities and their images are in the order of their names.

    Raises:
        ValueError: there is no folder, or one without images.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    identities = identity_folders(root)
    passed_over = [folder.name for folder in folders if is_leftover(folder.name)]
    paths: list[str] = []
    labels: list[int] = []
    for label, identity in enumerate(identities):
        files = sorted(identity.iterdir())
        images = [path for path in files if is_image(path)]
        if not images:
            raise ValueError(f"{identity}: expected images, found none; delete the folder if it is no identity")
        labels += [label] * len(images)
        paths += [f"{identity.name}/{image.name}" for image in images]
        passed_over += [f"{identity.name}/{path.name}" for path in files if not is_image(path)]
    if not paths:
        raise ValueError(f"{root}: expected one folder an identity, found none")
    return FileDataset(root, paths, labels, len(identities), note_of(root, passed_over), [i.name for i in identities])


def people_of_folders(root: Path) -> dict[str, str]:
    """The name of the person of each folder: that of the folder, or where there is a labels.txt the one in it."""
    folders = [path.name for path in identity_folders(root)]
    return dict(zip(folders, _read_people(root, len(folders))[0] or folders, strict=True))


def write_people(root: Path, people: Sequence[str]) -> None:
    """Write labels.txt; nothing where no names are known. What cannot stand in a line of UTF-8 is escaped."""
    if people:
        with atomic_write(root / PEOPLE) as file:
            lines = (printable(name.replace("\n", " ")) for name in people)
            file.writelines(f"{line}\n".encode(errors="backslashreplace") for line in lines)


def check_classes(path: Path, num_classes: int, images: int) -> None:
    """Raise a ValueError if the classes that a file claims cannot be meant: each takes memory in the head."""
    if num_classes > MOST_CLASSES * images:
        raise ValueError(
            f"{path}: labels go up to {num_classes - 1}, but there are only {images} images; number classes 0 .. C-1"
        )


def _missing(root: Path, paths: Sequence[str]) -> list[int]:
    """Places of the paths that are no files below the folder. Each folder is listed once, which takes a network's file
    system less time than a question for each of a million images."""
    files: dict[str, set[str]] = {}
    missing = []
    for place, path in enumerate(paths):
        folder, name = os.path.split(path)
        if folder not in files:
            try:
                with os.scandir(root / folder) as entries:
                    files[folder] = {entry.name for entry in entries if entry.is_file()}
            except OSError:
                files[folder] = set()
        if name not in files[folder]:
            missing.append(place)
    return missing


def _read_people(root: Path, num_classes: int) -> tuple[list[str], list[str]]:
    """The names in labels.txt, a line a label, and notes; neither where there is no such file."""
    path = root / PEOPLE
    if not path.exists():
        return [], []
    people = read_lines(path, "a line a label, the name of a person")
    if len(people) != num_classes:
        return [], [
            f"{path}: is not used; names of people would be {num_classes} lines, one a label, not {len(people)}"
        ]
    return people, []


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
        ValueError: a label is out of range, or comes again after another, or the file would need keys that its
            readers' float32 does not hold; nothing is written then.

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
        if key + len(ranges) > EXACT_KEYS:
            raise ValueError(
                f"{root / RECORD}: expected fewer than {EXACT_KEYS} images and identities together, as readers keep "
                f"their keys in float32, got {key + len(ranges) - 1}; use image files with {LIST} instead"
            )
        for number, label in enumerate(sorted(ranges)):
            writer.write_header(key + number, *ranges[label])
        writer.rewrite_first_header(0, key, key + len(ranges))
    with atomic_write(root / PROPERTY, "w") as file:
        file.write(f"{num_classes},{size},{size}\n")
    return key - 1


_READERS: dict[str, Callable[[Path], Dataset]] = {"record": RecordDataset, "list": read_list, "folder": read_folder}


def _digest(numbers: np.ndarray) -> str:
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()[:16]


def _kind_of(root: Path) -> str:
    for kind, name in (("record", RECORD), ("list", LIST)):
        if (root / name).exists():
            return kind
    if identity_folders(root):
        return "folder"
    raise FileNotFoundError(f"{root}: expected {RECORD}, or {LIST}, or one folder an identity; found none of them")


def _read_property(path: Path) -> int:
    expected = 'one line "classes,height,width", for example 10572,112,112'
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing; it should hold {expected}")
    text = "\n".join(read_lines(path, expected, limit=1000)).strip()
    fields = cells(text)
    if len(fields) != 3 or not all(f.isascii() and f.isdecimal() and len(f) < 10 for f in fields) or int(fields[0]) < 1:
        raise ValueError(f"{path}: expected {expected}, got {text[:100]!r}")
    return int(fields[0])
