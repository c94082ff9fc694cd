"""Labeled Faces in the Wild: a small training set, pairs to choose settings by, and pairs of View 2 to test on.

Huang, Ramesh, Berg, Learned-Miller, "Labeled Faces in the Wild", University of Massachusetts, 2007.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tqdm

from common.datasets.images import BadImage, encode_image
from common.datasets.pair_sets import write_pair_set
from common.datasets.training_sets import write_records
from data.faces import Pair, all_and_sampled_pairs, in_turn, people_of, read_pairs
from data.output import new_folder

SIZE = 250  # of LFW's images
IMAGE_NAME = re.compile(r"(?:[^/]+/)*(?P<person>[^/]+)/(?P=person)_(?P<number>\d{4})\.jpg")
MOST_BYTES = 2**20  # of an image; LFW's have 4 to 40 kB

# Eyes and mouth centre in LFW's aligned images (means over the LFW-a copy), and in the 112x112 template.
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
    """People with at least 5 images to train (40 at most of each), and two sets of pairs of other people.

    lfw_view2_folds01.bin, to test: folds 0 and 1 of View 2; nobody in them is trained on. lfw_validation.bin, to choose
    settings by: people with 2 to 4 images who are in neither, all pairs of one person and as many of two. Same and
    different pairs take turns, so that contiguous folds are balanced.

    Args:
        source: LFW's folder or its .tgz; none: scikit-learn's download (funneled images, for which the alignment,
            fitted to LFW-a, was not measured).
        pairs: pairs.txt of View 2; none: beside the source.
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
    wanted = {name for pair in test_pairs for name in (pair.first, pair.second)}

    images: dict[str, dict[int, bytes]] = {}
    test_images: dict[str, bytes] = {}
    for person, number, encoded in tqdm.tqdm(_images(source), desc="align", unit="images", total=13_233):
        name = f"{person}/{person}_{number:04d}"
        if name in wanted:
            test_images[name] = _align(encoded, name, size)
        if person not in tested and number <= MOST_IMAGES:
            images.setdefault(person, {})[number] = _align(encoded, name, size)
    missing = sorted(wanted - test_images.keys())
    if missing:
        raise ValueError(f"{source}: {len(missing)} images that {pairs} names are missing, first {missing[0]}")
    trained = {person: images[person] for person in sorted(images) if len(images[person]) >= FEWEST_IMAGES}
    others = {person: images[person] for person in sorted(images) if 2 <= len(images[person]) < FEWEST_IMAGES}
    other_images = {f"{person}/{n:04d}": image for person, own in others.items() for n, image in sorted(own.items())}
    names = {person: [f"{person}/{n:04d}" for n in sorted(own)] for person, own in others.items()}
    validation_pairs = all_and_sampled_pairs(names, seed=0)

    with new_folder(out, overwrite) as folder:
        labelled = ((image, label) for label, own in enumerate(trained.values()) for _, image in sorted(own.items()))
        count = write_records(folder, labelled, len(trained), size)
        _write_pairs(folder / "lfw_view2_folds01.bin", test_pairs, test_images)
        _write_pairs(folder / "lfw_validation.bin", validation_pairs, other_images)
    print(
        f"{count} images of {len(trained)} people to train, {len(test_pairs)} pairs of {len(tested)} others to test, "
        f"{len(validation_pairs)} pairs of {len(others)} others to choose by"
    )
    return out


def _write_pairs(path: Path, pairs: list[Pair], images: dict[str, bytes]) -> None:
    names = (name for pair in pairs for name in (pair.first, pair.second))
    write_pair_set(path, (images[name] for name in names), [pair.is_same for pair in pairs])


def _align(encoded: bytes, name: str, size: int) -> bytes:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) if encoded else None
    if image is None or image.shape[:2] != (SIZE, SIZE):
        raise BadImage(f"{name}: expected an image of {SIZE}x{SIZE}, got {'none' if image is None else image.shape}")
    transform = cv2.getAffineTransform(LANDMARKS, TEMPLATE * np.float32(size / 112))
    aligned = cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return encode_image(aligned[:, :, ::-1].transpose(2, 0, 1))


def _images(source: Path) -> Iterator[tuple[str, int, bytes]]:
    """Person, number and JPEG of each image, in any order."""
    if source.is_dir():
        for path in source.rglob("*.jpg"):
            match = IMAGE_NAME.fullmatch(path.relative_to(source.parent).as_posix())
            if match and path.stat().st_size <= MOST_BYTES:
                yield match["person"], int(match["number"]), path.read_bytes()
        return
    if not source.is_file():
        raise FileNotFoundError(f"{source}: expected LFW's folder or .tgz, found none")
    try:
        with tarfile.open(source) as archive:  # read member by member; nothing is extracted by the names it holds
            for member in archive:
                match = IMAGE_NAME.fullmatch(member.name)
                if match and member.isfile() and member.size <= MOST_BYTES:
                    content = archive.extractfile(member)
                    assert content is not None  # it is a file
                    yield match["person"], int(match["number"]), content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{source}: cannot be read as a .tgz ({error})") from None


def _download() -> tuple[Path, Path]:
    """LFW (funneled) and its pairs by scikit-learn's downloader, which checks their hashes."""
    from sklearn.datasets import fetch_lfw_pairs, fetch_lfw_people, get_data_home

    fetch_lfw_people(min_faces_per_person=500)  # all is downloaded, few are loaded
    fetch_lfw_pairs(subset="10_folds")
    home = Path(get_data_home()) / "lfw_home"
    return home / "lfw_funneled", home / "pairs.txt"
