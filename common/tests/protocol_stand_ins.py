"""A source without a network, for the commands of the protocols."""

from pathlib import Path

import numpy as np
import pytest

from common.backend import Backend
from common.evaluation.onnx_model import OnnxInput
from common.evaluation.source import Source, open_source

SIZE = 16
BACKEND = Backend("numpy")


def embed(images: np.ndarray) -> np.ndarray:
    """Means of the quarters of an image, so that mirror images differ from images, and strangers are at times alike."""
    assert images.dtype == np.uint8
    assert images.shape[1:] == (3, SIZE, SIZE)
    blocks = images.reshape(-1, 3, 2, SIZE // 2, 2, SIZE // 2).mean(axis=(3, 5), dtype=np.float32)
    return blocks.reshape(len(images), -1) - np.float32(127)


def open_stand_in(path: Path, backend: Backend, device: str, onnx: OnnxInput) -> Source:
    assert (backend, device) == (BACKEND, "auto")
    return open_source(path, backend, device, onnx) if path.suffix == ".npz" else Source("block means", SIZE, embed)


@pytest.fixture
def stand_ins(monkeypatch):
    """`open_source`, replaced."""
    for command in ("ijb", "megaface"):
        monkeypatch.setattr(f"common.commands.{command}.open_source", open_stand_in)
