"""Generated "faces" of any number of people: a person is a smooth pattern, and each image shifts it and adds noise."""

import itertools
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from common.datasets.images import encode_image
from common.datasets.training_sets import write_records
from common.io.progress import tracked
from data.faces import Pair, alternating, write_pairs
from data.output import check_at_least, new_folder

PATTERN = 6  # a person is an image of 6x6 random colours, enlarged
SHIFT = 0.05  # standard deviation, as a share of the width
NOISE = 12.0  # standard deviation of the coarse noise, in grey levels
TRAINING, TESTING = 0, 1  # people to train on, and people to test on


def make_synthetic(
    out: Path,
    classes: int = 10,
    images: int = 10,
    size: int = 112,
    pairs: int = 40,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Generate a record file of `classes` x `images` images, and synthetic.bin with pairs of other "people".

    Args:
        out: folder to write.
        classes: identities to train.
        images: images of each identity.
        size: width and height, pixels.
        pairs: pairs in synthetic.bin, half of them same.
        seed: seed of all random numbers.
        overwrite: replace `out`.
    """
    check_at_least(("classes", classes, 2), ("images", images, 1), ("size", size, 16), ("pairs", pairs, 0))
    with new_folder(out, overwrite) as folder:
        numbers = itertools.product(range(classes), range(images))
        drawn = (
            (encode_image(face(TRAINING, label, number, size, seed), ".jpg"), label)
            for label, number in tracked(numbers, "synthetic", "images", classes * images)
        )
        write_records(folder, drawn, classes, size)
        if pairs:
            same = [Pair(f"{i} 0", f"{i} 1", True) for i in range(pairs // 2)]
            different = [Pair(f"{i} 2", f"{(i + 1) % (pairs // 2 + 1)} 3", False) for i in range(pairs // 2)]
            read = partial(_testing_image, size=size, seed=seed)
            write_pairs(folder / "synthetic.bin", alternating(same, different), read)
    print(f"{classes * images} images of {classes} identities, {pairs // 2 * 2} pairs")
    return out


def face(purpose: int, person: int, number: int, size: int, seed: int) -> np.ndarray:
    """Draw image `number` of a generated person, (3, size, size) uint8: a pure function of its arguments."""
    pattern = np.random.default_rng([seed, purpose, person]).integers(20, 236, (PATTERN, PATTERN, 3), np.uint8)
    random = np.random.default_rng([seed, purpose, person, number])
    step = size / PATTERN
    shift = SHIFT * size * random.standard_normal(2) + (step - 1) / 2
    transform = np.array([[step, 0, shift[0]], [0, step, shift[1]]])
    image = cv2.warpAffine(pattern, transform, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    coarse = (NOISE * random.standard_normal((size // 4, size // 4))).astype(np.int16)
    noisy = np.clip(image + cv2.resize(coarse, (size, size), interpolation=cv2.INTER_NEAREST)[..., None], 0, 255)
    return noisy.astype(np.uint8).transpose(2, 0, 1)


def _testing_image(name: str, size: int, seed: int) -> bytes:
    person, number = map(int, name.split())
    return encode_image(face(TESTING, person, number, size, seed), ".jpg")
