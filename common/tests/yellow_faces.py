"""A stand-in for YuNet, whose faces are yellow squares on black."""

from pathlib import Path

import cv2
import numpy as np

from common.datasets.alignment import TEMPLATE
from common.datasets.images import encode_image


class SquareDetector:
    """As `cv2.FaceDetectorYN`: gives a box, five landmarks at fixed places of the box, and a score."""

    def __init__(self, model, config, size, score):
        self.made_with = (size, score)

    def setInputSize(self, size):  # OpenCV's name
        self.size = size

    def detect(self, bgr):
        assert bgr.shape[1::-1] == self.size
        assert bgr[..., 0].max() < 60, "blue comes first: the squares are yellow"
        _, _, boxes, _ = cv2.connectedComponentsWithStats((bgr[..., 1] > 128).astype(np.uint8))
        rows = [[x, y, w, h, *(((x, y) + TEMPLATE / 112 * (w, h)) - 0.5).ravel(), 0.9] for x, y, w, h, _ in boxes[1:]]
        return 1, np.array(rows, np.float32) if rows else None


def squares(*boxes, height: int = 200, width: int = 300) -> bytes:
    """An encoded photo with a square for each (x, y, side)."""
    image = np.zeros((3, height, width), np.uint8)
    for x, y, side in boxes:
        image[:2, y : y + side, x : x + side] = 255
    return encode_image(image)


def stand_in(monkeypatch, folder: Path) -> Path:
    """Put the stand-in in the place of YuNet; the path of its file."""
    monkeypatch.setattr(cv2, "FaceDetectorYN", type("FaceDetectorYN", (), {"create": SquareDetector}))
    (folder / "yunet.onnx").write_bytes(b"made up")
    return folder / "yunet.onnx"
