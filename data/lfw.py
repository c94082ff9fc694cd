"""Labeled Faces in the Wild: a small training set, pairs to choose settings by, and pairs of View 2 to test on.

Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", University of Massachusetts, 2007.
"""

import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np

from common.datasets.images import BadImage, encode_image
from common.datasets.training_sets import write_records
from common.io.files import require_file
from common.io.progress import tracked
from data.faces import Pair, all_and_sampled_pairs, in_turn, people_of, read_pairs, write_pairs
from data.output import new_folder

SIZE = 250  # pixels, width and height of LFW's images
IMAGE_NAME = re.compile(r"(?:[^/]+/)*(?P<person>[^/]+)/(?P=person)_(?P<number>\d{4})\.jpg")
MOST_BYTES = 2**20  # of an image file; LFW's have 4 to 40 kB

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
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if image is None or image.shape[:2] != (SIZE, SIZE):
        raise BadImage(f"{name}: expected an image of {SIZE}x{SIZE}, got {'none' if image is None else image.shape}")
    transform = cv2.getAffineTransform(LANDMARKS, TEMPLATE * np.float32(size / 112))
    aligned = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return encode_image(aligned[:, :, ::-1].transpose(2, 0, 1))


def _images_of_folder(source: Path) -> Iterator[tuple[str, int, bytes]]:
    """Read person, number and JPEG of each image, in any order."""
    for path in source.rglob("*.jpg"):
        if match := _match(path.relative_to(source.parent).as_posix(), path.stat().st_size):
            yield match["person"], int(match["number"]), path.read_bytes()


def _images_of_archive(source: Path) -> Iterator[tuple[str, int, bytes]]:
    require_file(source, "LFW's folder or .tgz")
    try:
        with tarfile.open(source) as archive:
            for member in archive:  # read one by one: nothing is extracted to the names that the archive holds
                match = _match(member.name, member.size) if member.isfile() else None
                content = archive.extractfile(member) if match else None
                if match and content:
                    yield match["person"], int(match["number"]), content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{source}: cannot be read as a .tgz ({error})") from None


def _match(name: str, size: int) -> re.Match[str] | None:
    return IMAGE_NAME.fullmatch(name) if size <= MOST_BYTES else None


def _download() -> tuple[Path, Path]:
    """Download LFW (funneled) and its pairs by scikit-learn, which checks their hashes."""
    from sklearn.datasets import fetch_lfw_pairs, fetch_lfw_people, get_data_home

    fetch_lfw_people(min_faces_per_person=500)  # downloads all images and loads few
    fetch_lfw_pairs(subset="10_folds")
    home = Path(get_data_home()) / "lfw_home"
    return home / "lfw_funneled", home / "pairs.txt"
