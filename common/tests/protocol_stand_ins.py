"""A source without a network, for the commands of the protocols."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

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


def open_source(path: Path, backend: Backend, device: str) -> Source:
    assert (backend, device) == (BACKEND, "auto")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return Source(f"embeddings of {path.name}", arrays=dict(arrays))
    return Source("block means", SIZE, embed)


@pytest.fixture
def stand_ins(monkeypatch):
    """`open_source`, replaced."""
    monkeypatch.setattr("common.protocol_commands.open_source", open_source)
