"""Align the faces of a folder to the template of `common.datasets.alignment`, by landmarks of a file or a detector."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import tqdm

from common.datasets.alignment import TEMPLATE_SIZE, align
from common.datasets.images import decode_photo, encode_image
from common.datasets.training_sets import image_files
from common.io.files import atomic_write, read_json, write_json

SETTINGS, LEFT_OUT = "align.json", "left_out.txt"
SUFFIXES = (".png", ".jpg")

Landmarks = Callable[[np.ndarray, str], np.ndarray]
"""(H, W, 3) uint8 RGB and the image's name -> (5, 2) float32; a ValueError says why there are none."""

Choice = Literal["largest", "central"]


def make_aligned(
    source: Path,
    out: Path,
    landmarks: Path | None = None,
    detector: Path | None = None,
    face: Choice = "largest",
    size: int = TEMPLATE_SIZE,
    suffix: Literal[".png", ".jpg"] = ".png",
    detect_at: int = 640,
    min_score: float = 0.6,
    overwrite: bool = False,
) -> Path:
    """Align every image in a folder and the folders in it; what is left out is named, counted and listed in a file.

    Stopped half-way, the same command goes on: images that are there already are not made again.

    Args:
        source: folder of images.
        out: folder to write, with the folders of `source`; left_out.txt in it lists images without a face, and why.
        landmarks: a line an image: path in `source`, x and y of left eye, right eye, nose, left and right corner of the
            mouth, as seen in the image; separated by spaces, tabs or commas.
        detector: OpenCV's YuNet (face_detection_yunet_2023mar.onnx of opencv_zoo), to find the landmarks.
        face: which face the detector takes where there are several: the largest one, or the one nearest to the centre.
        size: width and height of the aligned images, pixels.
        suffix: of the files written: .png (lossless), or .jpg (quality 95).
        detect_at: an image with a longer side is shrunk to this for detection, pixels.
        min_score: faces of which the detector is less sure are none, 0 to 1.
        overwrite: make images that are there already again.
    """
    if (landmarks is None) == (detector is None):
        raise ValueError("expected one of --landmarks and --detector")
    if size < 16 or detect_at < 16 or not 0 <= min_score <= 1:
        raise ValueError(
            f"expected a size and a side for detection of at least 16 pixels and a score from 0 to 1, got {size}, "
            f"{detect_at} and {min_score}"
        )
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--out: expected a folder outside of {source}, whose images are aligned; got {out}")
    settings: dict[str, object] = {"size": size, "suffix": suffix}
    if landmarks is not None:
        find = _from_file(landmarks)
        settings |= {"landmarks": _sha256(landmarks)}
    else:
        assert detector is not None
        find = _from_detector(detector, face, detect_at, min_score)
        settings |= {"detector": _sha256(detector), "face": face, "detect_at": detect_at, "min_score": min_score}
    targets = _targets(source, suffix)
    if overwrite:
        for target in targets.values():
            for old in SUFFIXES:
                (out / target.with_suffix(old)).unlink(missing_ok=True)
        (out / SETTINGS).unlink(missing_ok=True)
    _claim(out, settings, overwrite)

    left_out: dict[str, str] = {}
    aligned = there = 0
    for name, target in tqdm.tqdm(targets.items(), desc="align", unit="images", disable=None):
        if (out / target).exists():
            there += 1
            continue
        try:
            photo = decode_photo((source / name).read_bytes(), name)
            face_image = align(photo, find(photo, name), size)
        except ValueError as problem:
            left_out[name] = " ".join(str(problem).removeprefix(f"{name}: ").split())
            tqdm.tqdm.write(f"left out: {name}: {left_out[name]}")
            continue
        with atomic_write(out / target) as file:
            file.write(encode_image(face_image, suffix))
        aligned += 1
    with atomic_write(out / LEFT_OUT) as file:
        file.writelines(f"{name}\t{reason}\n".encode(errors="surrogateescape") for name, reason in left_out.items())
    print(f"{aligned} images aligned, {there} were there already, {len(left_out)} left out: {out / LEFT_OUT}")
    if not aligned + there:
        raise ValueError(f"{source}: none of the {len(targets)} images could be aligned; {out / LEFT_OUT} says why")
    return out


def read_landmarks(path: Path) -> dict[str, np.ndarray]:
    """Landmarks by path of the image, (5, 2) float32 each; the layout is that of `make_aligned`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a path and ten finite numbers, or names an image for the second time; by its number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of landmarks, found none")
    found: dict[str, np.ndarray] = {}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not line or (number == 1 and re.match(r"path\s*[\s,]", line)):
                continue
            ends = [separator.span() for separator in re.finditer(r"[\s,]+", line)][-10:]  # a path may hold them too
            name, numbers = (line[: ends[0][0]], re.split(r"[\s,]+", line[ends[0][1] :])) if ends else (line, [])
            try:
                points = np.array(numbers, np.float32)
            except ValueError:
                points = np.empty(0, np.float32)
            if points.shape != (10,) or not np.isfinite(points).all():
                raise ValueError(f"{path} line {number}: expected a path and ten finite numbers, got {line[:100]!r}")
            if name in found:
                raise ValueError(f"{path} line {number}: {name} is there twice")
            found[name] = points.reshape(5, 2)
    if not found:
        raise ValueError(f"{path}: holds no landmarks")
    return found


class Face(NamedTuple):
    """A detected face in pixels: the corner of its box, width and height, and the landmarks (5, 2)."""

    x: float
    y: float
    width: float
    height: float
    landmarks: np.ndarray


def chosen_face(faces: list[Face], choice: Choice, width: int, height: int) -> Face:
    """The largest of the faces, or the one whose middle is nearest to that of the image."""
    if choice == "largest":
        return max(faces, key=lambda face: face.width * face.height)
    return min(
        faces, key=lambda face: math.hypot(face.x + (face.width - width) / 2, face.y + (face.height - height) / 2)
    )


def _from_file(path: Path) -> Landmarks:
    known: Mapping[str, np.ndarray] = read_landmarks(path)

    def find(photo: np.ndarray, name: str) -> np.ndarray:
        if name not in known:
            raise ValueError(f"no landmarks in {path}")
        return known[name]

    return find


def _from_detector(path: Path, choice: Choice, detect_at: int, min_score: float) -> Landmarks:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the detector's ONNX file, found none")
    try:
        detector = cv2.FaceDetectorYN.create(str(path), "", (detect_at, detect_at), min_score)
    except cv2.error as error:
        raise ValueError(f"{path}: cannot be opened as YuNet ({str(error).strip()})") from None

    def find(photo: np.ndarray, name: str) -> np.ndarray:
        height, width = photo.shape[:2]
        scale = min(1, detect_at / max(height, width))
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        bgr = np.ascontiguousarray(photo[:, :, ::-1])
        if scale < 1:
            bgr = cv2.resize(bgr, small, interpolation=cv2.INTER_AREA)
        detector.setInputSize(small)
        try:
            _, rows = detector.detect(bgr)  # x, y, width, height, five landmarks, score
        except cv2.error as error:
            raise ValueError(f"{path}: the detector fails on {name} ({str(error).strip()})") from None
        if rows is None:
            raise ValueError("no face found")
        faces = [Face(x, y, w, h, np.reshape(rest[:10], (5, 2))) for x, y, w, h, *rest in rows.tolist()]
        ratio = np.divide(small, (width, height))
        return (chosen_face(faces, choice, *small).landmarks + 0.5) / ratio - 0.5  # shrinking keeps edges, not centres

    return find


def _targets(source: Path, suffix: str) -> dict[str, Path]:
    """Path of each image in `source`, and of what becomes of it in `out`."""
    targets = {path.as_posix(): path.with_suffix(suffix) for path in image_files(source)}
    sources: dict[Path, str] = {}
    for name, target in targets.items():
        if (twin := sources.setdefault(target, name)) != name:
            raise ValueError(f"{source}: {twin} and {name} would both become {target}; rename one")
    return targets


def _claim(out: Path, settings: Mapping[str, object], overwrite: bool) -> None:
    """Make the folder, or make sure that what is in it was aligned with these settings."""
    path = out / SETTINGS
    if path.exists():
        try:
            before = read_json(path, "the settings of aligned images")
        except ValueError as error:
            raise ValueError(f"{error}; pass --overwrite to make all images again") from None
        if before != settings:
            raise ValueError(
                f"{out} holds images that were aligned with {before}, not with {dict(settings)}; "
                "choose another folder, or pass --overwrite to make all of them again"
            )
    elif not overwrite and out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: is not empty and has no {SETTINGS}; choose another folder, or pass --overwrite")
    write_json(path, dict(settings))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
