"""Generated images that take as long to decode as photographs of faces, and data sets of them."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from common.datasets.images import encode_image
from common.datasets.pair_sets import write_pair_set
from common.datasets.training_sets import write_records

DISTINCT = 512  # different images; a larger set repeats them


def jpegs(count: int, size: int, seed: int = 0) -> list[bytes]:
    """JPEG files of quality 95 of smooth random images with a little noise: about 7 kB at 112x112 pixels."""
    random = np.random.default_rng(seed)
    return [encode_image(_image(random, size), ".jpg") for _ in range(count)]


def write_training_set(root: Path, count: int, num_classes: int, size: int) -> None:
    """Write train.rec, train.idx and property with `count` images of pixels (`size`, `size`), as many of each class."""
    images = jpegs(min(count, DISTINCT), size)

    def samples() -> Iterator[tuple[bytes, int]]:
        return ((images[i % len(images)], i * num_classes // count) for i in range(count))

    write_records(root, samples(), num_classes, size)


def write_pairs(path: Path, pairs: int, size: int) -> None:
    """Write a set of pairs, half of them "same", whose 2 * pairs image files all differ."""
    images = jpegs(min(2 * pairs, DISTINCT), size)
    # bytes after the end of a JPEG are ignored; they make the copies different files
    encoded = (images[i % len(images)] + i.to_bytes(4, "little") for i in range(2 * pairs))
    write_pair_set(path, encoded, (i % 2 == 0 for i in range(pairs)))


def _image(random: np.random.Generator, size: int) -> np.ndarray:
    coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
    smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    noisy = smooth + random.normal(0, 4, smooth.shape)
    return np.ascontiguousarray(noisy.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
