"""A backend and a source without a network, for the commands of the protocols."""

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from common.cli import Backend
from common.evaluation import Embed

SIZE = 16
BACKEND = Backend("numpy", "numpy_impl")


class Source(NamedTuple):
    description: str
    image_size: int | None = None
    embed: Embed | None = None
    arrays: Mapping[str, np.ndarray] = {}


def embed(images: np.ndarray) -> np.ndarray:
    """Means of the quarters of an image, so that mirror images differ from images, and strangers are at times alike."""
    assert images.dtype == np.uint8
    assert images.shape[1:] == (3, SIZE, SIZE)
    blocks = images.reshape(-1, 3, 2, SIZE // 2, 2, SIZE // 2).mean(axis=(3, 5), dtype=np.float32)
    return blocks.reshape(len(images), -1) - np.float32(127)


def align(image: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """By the eyes alone, which is enough to see that image and landmarks belong together."""
    assert image.dtype == np.uint8
    scale = size * 0.3146 / (landmarks[1, 0] - landmarks[0, 0])
    shift = np.array([0.342, 0.4616]) * size - scale * landmarks[0]
    moved = cv2.warpAffine(image, np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), (size, size))
    return moved.transpose(2, 0, 1)


def open_source(path: Path, backend: Backend, device: str) -> Source:
    assert (backend, device) == (BACKEND, "auto")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return Source(f"embeddings of {path.name}", arrays=dict(arrays))
    return Source("block means", SIZE, embed)


@pytest.fixture
def stand_ins(monkeypatch):
    """common.source and common.alignment, replaced."""
    for name, function in (("source", open_source), ("alignment", align)):
        module = types.ModuleType(f"common.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
