"""Faces in photos, found by a stand-in for the detector, and which of them is taken."""

import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from common.datasets.alignment import TEMPLATE
from common.datasets.detection import Detector, Face, align_face, chosen_face
from common.datasets.images import BadImage, decode_photo
from common.tests.yellow_faces import SquareDetector, squares, stand_in


@pytest.fixture
def detector(monkeypatch, tmp_path):
    return stand_in(monkeypatch, tmp_path)


def photo(*boxes, **size) -> np.ndarray:
    return decode_photo(squares(*boxes, **size), "photo")


def test_boxes_and_landmarks_of_a_shrunk_image_keep_their_place(detector):
    """The image is halved exactly and nothing is rounded, so an offset of half a pixel would show."""
    (face,) = Detector(detector).faces(photo((200, 100, 320), height=600, width=1280), "face")
    assert face[:4] == (200, 100, 320, 320)
    assert face.landmarks == pytest.approx((200, 100) + TEMPLATE / 112 * 320 - 0.5, abs=1e-3)


@pytest.mark.parametrize(("choice", "expected"), [("largest", 0), ("central", 1)])
def test_which_face(choice, expected):
    """In 300x200 pixels; the last two are as central in one direction only."""
    boxes = [(0, 0, 90, 80), (120, 75, 40, 40), (130, 10, 40, 40), (10, 80, 40, 40)]
    faces = [Face(*box, TEMPLATE) for box in boxes]
    assert chosen_face(faces, choice, 300, 200) is faces[expected]


@pytest.mark.parametrize(("choice", "box"), [("largest", (10, 10, 80)), ("central", (140, 90, 20))])
def test_the_chosen_face_is_aligned(detector, choice, box):
    two = photo((10, 10, 80), (140, 90, 20))
    found = align_face(two, "two", Detector(detector), choice, 32)
    alone = align_face(photo(box), "one", Detector(detector), choice, 32)
    assert (found.faces, alone.faces) == (2, 1)
    assert found.image.shape == (3, 32, 32)
    assert np.array_equal(found.image, alone.image)


def test_no_face(detector):
    with pytest.raises(BadImage) as error:
        Detector(detector, detect_at=150, min_score=0.7).faces(photo(), "none.jpg")
    assert str(error.value) == (
        "none.jpg: no face found in 150x100 pixels with a score of 0.7 or more (--detect-at, --min-score)"
    )


@pytest.mark.parametrize(("detect_at", "min_score"), [(15, 0.5), (640, 1.1), (640, float("nan"))])
def test_numbers_out_of_range(detector, detect_at, min_score):
    with pytest.raises(ValueError, match="at least 16 pixels and a score from 0 to 1"):
        Detector(detector, detect_at, min_score)


def test_what_is_no_detector(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the detector's ONNX file"):
        Detector(tmp_path / "absent.onnx")
    (tmp_path / "yunet.onnx").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"yunet\.onnx: cannot be opened as YuNet"):
        Detector(tmp_path / "yunet.onnx")


def test_a_detector_that_fails(detector, monkeypatch):
    def fail(self, bgr):
        raise cv2.error("out of order")

    monkeypatch.setattr(SquareDetector, "detect", fail)
    with pytest.raises(ValueError, match=r"the detector fails on a\.jpg \(out of order\)"):
        Detector(detector).faces(photo(), "a.jpg")


def test_threads_do_not_disturb_each_other(detector, monkeypatch):
    """Photos of two sizes at once: each is detected with its own."""
    detect, wait = SquareDetector.detect, threading.Barrier(2, timeout=0.2)

    def slow(self, bgr):
        try:
            wait.wait()  # the other thread would be here too
        except threading.BrokenBarrierError:
            wait.reset()
        return detect(self, bgr)

    monkeypatch.setattr(SquareDetector, "detect", slow)
    shared = Detector(detector)
    photos = [photo((20, 20, 60)), photo((20, 20, 60), height=300)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(shared.faces, photos, ["a", "b"]))
    assert [len(faces) for faces in found] == [1, 1]
