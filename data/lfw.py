"""Labeled Faces in the Wild: a small training set, pairs to choose settings by, and pairs of View 2 to test on.

Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", University of Massachusetts, 2007.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from common.datasets.images import BadImage, decode_photo, encode_image
from common.datasets.training_sets import write_records
from common.io.files import is_inside, open_regular, read_regular, require_file
from common.io.progress import tracked
from data.faces import Pair, all_and_sampled_pairs, in_turn, people_of, read_pairs, write_pairs
from data.output import new_folder

SIZE = 250  # pixels, width and height of LFW's images
IMAGE_NAME = re.compile(r"(?:[^/]+/)*(?P<person>[^/]+)/(?P=person)_(?P<number>\d{4})\.jpg")
MOST_BYTES = 2**20  # of an image file; LFW's have 4 to 40 kB

GZIP = b"\x1f\x8b"
MOST_EXPANSION = 20  # photos hardly shrink when packed; headers and padding do

# Eyes and centre of the mouth: means over the LFW-a copy, and in the 112x112 template.
LANDMARKS = np.array([[103.2, 113.8], [148.5, 112.6], [127.6, 158.7]], np.float32)
TEMPLATE = np.array([[38.29, 51.70], [73.53, 51.50], [56.1, 92.3]], np.float32)

FEWEST_IMAGES, MOST_IMAGES, TEST_FOLDS = 5, 40, 2


def make_lfw_small(
    source: Path | None = None,
    pairs: Path | None = None,
    out: Path = Path("datasets/lfw-small"),
    size: int = 112,
    overwrite: bool = False,
) -> Path:
    """Make a training set of the people with at least 5 images (40 of each at most), and two sets of pairs of others.

    lfw_view2_folds01.bin is for tests: folds 0 and 1 of View 2, whose people are not trained on. lfw_validation.bin is
    for the choice of settings: people with 2 to 4 images who are in neither, all pairs of one person and as many of
    two. Same and different pairs alternate, so contiguous folds are balanced.

    Args:
        source: LFW's folder or its .tgz; none: scikit-learn downloads the funneled images. The alignment is fitted to
            LFW-a and was not measured on these.
        pairs: pairs.txt of View 2; none: the one beside the source.
        out: folder to write.
        size: width and height of the aligned images, pixels.
        overwrite: replace `out`.
    """
    if source is None:
        source, downloaded_pairs = _download()
        pairs = pairs or downloaded_pairs
    pairs = pairs or source.parent / "pairs.txt"
    test_pairs = [pair for fold in read_pairs(pairs)[:TEST_FOLDS] for pair in in_turn(fold)]
    tested = set(people_of(test_pairs))
    aligned = _aligned(source, pairs, test_pairs, tested, size)

    people = _people(aligned.keys(), tested)
    trained = [names for names in people.values() if len(names) >= FEWEST_IMAGES]
    others = {person: names for person, names in people.items() if 2 <= len(names) < FEWEST_IMAGES}
    validation_pairs = all_and_sampled_pairs(others, seed=0)

    with new_folder(out, overwrite) as folder:
        labelled = ((aligned[name], label) for label, names in enumerate(trained) for name in names)
        count = write_records(folder, labelled, len(trained), size)
        write_pairs(folder / "lfw_view2_folds01.bin", test_pairs, aligned.__getitem__)
        write_pairs(folder / "lfw_validation.bin", validation_pairs, aligned.__getitem__)
    print(
        f"{count} images of {len(trained)} people to train, {len(test_pairs)} pairs of {len(tested)} others to test, "
        f"{len(validation_pairs)} pairs of {len(others)} others to choose by"
    )
    return out


def _people(names: Iterable[str], tested: set[str]) -> dict[str, list[str]]:
    """Group the names of images by person, both sorted, without the people who are tested."""
    people: dict[str, list[str]] = {}
    for name in sorted(names):
        people.setdefault(name.split("/")[0], []).append(name)
    return {person: people[person] for person in sorted(people.keys() - tested)}


def _aligned(source: Path, pairs: Path, test_pairs: list[Pair], tested: set[str], size: int) -> dict[str, bytes]:
    """Align the images of the test pairs, and MOST_IMAGES at most of each other person; PNGs by name."""
    wanted = {name for pair in test_pairs for name in (pair.first, pair.second)}
    aligned: dict[str, bytes] = {}
    images = _images_of_folder(source) if source.is_dir() else _images_of_archive(source)
    for person, number, encoded in tracked(images, "align", "images", 13_233):
        name = f"{person}/{person}_{number:04d}"
        if name in wanted or (person not in tested and number <= MOST_IMAGES):
            aligned[name] = _align(encoded, name, size)
    missing = sorted(wanted - aligned.keys())
    if missing:
        raise ValueError(f"{source}: {len(missing)} images that {pairs} names are missing, first {missing[0]}")
    return aligned


def _align(encoded: bytes, name: str, size: int) -> bytes:
    image = decode_photo(encoded, name)
    if image.shape[:2] != (SIZE, SIZE):
        raise BadImage(f"{name}: expected an image of {SIZE}x{SIZE}, got {image.shape[1]}x{image.shape[0]}")
    transform = cv2.getAffineTransform(LANDMARKS, TEMPLATE * np.float32(size / 112))
    aligned = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return encode_image(aligned.transpose(2, 0, 1))


def _images_of_folder(source: Path) -> Iterator[tuple[str, int, bytes]]:
    """Read person, number and JPEG of each image, in any order."""
    for path in source.rglob("*.jpg"):
        if match := _match(path.relative_to(source.parent).as_posix(), path.stat().st_size):
            yield match["person"], int(match["number"]), read_regular(path)


def _images_of_archive(source: Path) -> Iterator[tuple[str, int, bytes]]:
    require_file(source, "LFW's folder or .tgz")
    try:
        for name, content in _members(source):
            if match := _match(name, len(content)):
                yield match["person"], int(match["number"]), content
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{source}: cannot be read as a .tgz ({error})") from None


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a .tgz or .tar. Python's own reader takes memory for all that headers claim.

    Headers that would give a file a longer name or other facts are passed over: LFW needs none.
    """
    with open_regular(source) as opened:
        size, packed = source.stat().st_size, opened.peek(2)[:2] == GZIP
        file = gzip.GzipFile(fileobj=opened) if packed else opened
        while any(block := file.read(tarfile.BLOCKSIZE)):
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            place = f"{source}: {header.name[:100]!r}"
            if header.islnk() or header.issym() or not (header.isdir() or is_inside(header.name)):
                raise ValueError(f"{place}: expected files below the archive's folder, got a link or another path")
            left = -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if left < 0 or file.tell() + left > MOST_EXPANSION * (2**20 + size):
                raise ValueError(f"{place}: claims {header.size} bytes in an archive of {size}")
            content = b""
            while left:  # what is too long for an image is passed over in pieces
                content = file.read(min(left, MOST_BYTES))
                if not content:
                    raise EOFError(f"ends within {header.name[:100]!r}")
                left -= len(content)
            if header.isreg() and header.size <= MOST_BYTES:
                yield header.name, content[: header.size]


def _match(name: str, size: int) -> re.Match[str] | None:
    return IMAGE_NAME.fullmatch(name) if size <= MOST_BYTES else None


def _download() -> tuple[Path, Path]:
    """Download LFW (funneled) and its pairs by scikit-learn, which checks their hashes."""
    from sklearn.datasets import fetch_lfw_pairs, fetch_lfw_people, get_data_home

    try:
        fetch_lfw_people(min_faces_per_person=500)  # downloads all images and loads few
        fetch_lfw_pairs(subset="10_folds")
    except OSError as error:
        raise OSError(f"LFW cannot be downloaded ({error}); pass --source, its folder or .tgz") from None
    home = Path(get_data_home()) / "lfw_home"
    return home / "lfw_funneled", home / "pairs.txt"
