"""Does an ONNX model compute what the weights compute that were read from it? onnxruntime runs both."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.evaluation.onnx_model import open_onnx
from common.weights.onnx_export import export_onnx

MOST = 1e-4
"""Largest difference of the embeddings of both, of the largest value. The released SFace has 2e-6."""
IMAGES = 4


def check_agreement(path: Path, arrays: Mapping[str, np.ndarray], backbone: str, size: int, image_size: int) -> float:
    """The largest difference of embeddings of random images, of the largest value in them.

    Args:
        path: an ONNX model.
        arrays: the weights of our backbone, by canonical name.
        backbone: its name.
        size: of an embedding, D.
        image_size: S, pixels.

    Raises:
        ValueError: they differ by more than rounding, or the model is none that embeds images of this size.
    """
    model = open_onnx(path, "cpu")
    if model.image_size != image_size:
        raise ValueError(f"{path}: expected a model of images of {image_size} pixels, got {model.image_size}")
    with tempfile.TemporaryDirectory() as folder:
        ours = Path(folder) / "ours.onnx"
        export_onnx(ours, arrays, backbone=backbone, embedding_size=size, image_size=image_size)
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, image_size, image_size), np.uint8)
        expected, found = (opened.embed(images) for opened in (model, open_onnx(ours, "cpu")))
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= MOST:
        raise ValueError(
            f"{path}: its graph is not that of {backbone}: with the same weights, embeddings differ by "
            f"{difference:.2g} of the largest value, expected {MOST:g} at most"
        )
    return difference
