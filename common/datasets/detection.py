"""Find faces in photos: OpenCV's YuNet, and which of several faces is taken."""

import math
import threading
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from common.datasets.alignment import align
from common.datasets.images import BadImage
from common.io.files import require_file

Choice = Literal["largest", "central"]


class Face(NamedTuple):
    """A detected face in pixels: top left corner, width and height of its box, and its landmarks (5, 2)."""

    x: float
    y: float
    width: float
    height: float
    landmarks: np.ndarray


class AlignedFace(NamedTuple):
    """The face of a photo that was taken."""

    image: np.ndarray  # (3, S, S) uint8 RGB, aligned to the template
    faces: int  # how many faces the photo has


class Detector:
    """OpenCV's YuNet (face_detection_yunet_2023mar.onnx of opencv_zoo). Any number of threads may use it.

    Args:
        path: the ONNX file.
        detect_at: larger photos are shrunk until their longer side has this many pixels.
        min_score: the least score of a face, 0 to 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YuNet, or a number is out of range.
    """

    def __init__(self, path: Path, detect_at: int = 640, min_score: float = 0.6) -> None:
        if detect_at < 16 or not 0 <= min_score <= 1:
            raise ValueError(
                f"expected a side for detection of at least 16 pixels and a score from 0 to 1, got {detect_at} and "
                f"{min_score}"
            )
        self._path, self._detect_at, self._min_score = Path(path), detect_at, min_score
        require_file(self._path, "the detector's ONNX file")
        try:
            self._network = cv2.FaceDetectorYN.create(str(path), "", (detect_at, detect_at), min_score)
        except cv2.error as error:
            raise ValueError(f"{path}: cannot be opened as YuNet ({str(error).strip()})") from None
        self._lock = threading.Lock()  # the network keeps the size of its input between two calls

    def faces(self, photo: np.ndarray, name: str) -> list[Face]:
        """Find the faces in a photo, (H, W, 3) uint8 RGB, which errors call `name`; at least one.

        Raises:
            BadImage: it shows no face.
            ValueError: the detector fails.
        """
        height, width = photo.shape[:2]
        scale = min(1, self._detect_at / max(height, width))
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        bgr = np.ascontiguousarray(photo[:, :, ::-1])
        if scale < 1:
            bgr = cv2.resize(bgr, small, interpolation=cv2.INTER_AREA)
        try:
            with self._lock:
                self._network.setInputSize(small)
                _, rows = self._network.detect(bgr)  # x, y, width, height, five landmarks, score
        except cv2.error as error:
            raise ValueError(f"{self._path}: the detector fails on {name} ({str(error).strip()})") from None
        if rows is None:
            raise BadImage(
                f"{name}: no face found in {small[0]}x{small[1]} pixels with a score of {self._min_score:g} or more "
                "(--detect-at, --min-score)"
            )
        across, down = ratio = np.divide(small, (width, height)).tolist()
        return [
            Face(
                *(x / across, y / down, w / across, h / down),
                (np.reshape(rest[:10], (5, 2)) + 0.5) / ratio - 0.5,  # shrinking keeps edges, not centres
            )
            for x, y, w, h, *rest in rows.tolist()
        ]


def chosen_face(faces: list[Face], choice: Choice, width: int, height: int) -> Face:
    """Choose the largest face, or the one whose centre is nearest to that of the image (width x height pixels)."""
    if choice == "largest":
        return max(faces, key=lambda face: face.width * face.height)
    return min(
        faces, key=lambda face: math.hypot(face.x + (face.width - width) / 2, face.y + (face.height - height) / 2)
    )


def align_face(photo: np.ndarray, name: str, detector: Detector, choice: Choice, size: int) -> AlignedFace:
    """Find the faces in a photo, (H, W, 3) uint8 RGB, take one and align it; raises as `Detector.faces` and `align`."""
    faces = detector.faces(photo, name)
    landmarks = chosen_face(faces, choice, photo.shape[1], photo.shape[0]).landmarks
    return AlignedFace(align(photo, landmarks, size), len(faces))
