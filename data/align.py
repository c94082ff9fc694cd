"""Align the faces in a folder to the template of `common.datasets.alignment`; a file or a detector gives landmarks."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from common.datasets.alignment import TEMPLATE_SIZE, align, check_face
from common.datasets.detection import Choice, Detector, chosen_face
from common.datasets.images import decode_photo, encode_image
from common.datasets.training_sets import image_files
from common.io.files import atomic_write, read_json, require_file, sha256_of, write_json
from common.io.progress import say, tracked

SETTINGS, LEFT_OUT = "align.json", "left_out.txt"
SUFFIXES = (".png", ".jpg")

Landmarks = Callable[[np.ndarray, str], np.ndarray]
"""From an image, (H, W, 3) uint8 RGB, and its name to (5, 2) float32; a ValueError says why there are no landmarks."""


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
    """Align every image in a folder and its subfolders. Images without a face are left out and listed in a file.

    If the command is stopped, the same command goes on: images that are there already are not made again.

    Args:
        source: folder of images.
        out: folder to write, with the subfolders of `source`; left_out.txt in it lists the images left out, and why.
        landmarks: file with a line an image: path in `source`, then x and y of left eye, right eye, nose, left and
            right corner of the mouth, as seen in the image; separated by spaces, tabs or commas.
        detector: OpenCV's YuNet (face_detection_yunet_2023mar.onnx of opencv_zoo), which finds the landmarks.
        face: which of several faces in an image is taken: the largest one, or the one nearest to the centre.
        size: width and height of the aligned images, pixels.
        suffix: suffix of the files written: .png (lossless), or .jpg (quality 95).
        detect_at: for detection, larger images are shrunk until their longer side has this many pixels.
        min_score: the least score of a face, 0 to 1, as the detector gives it.
        overwrite: make images that are there already again.
    """
    if size < 16:
        raise ValueError(f"--size: expected at least 16 pixels, got {size}")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"--out: expected a folder outside of {source}, whose images are aligned; got {out}")
    find, settings = _finder(landmarks, detector, face, detect_at, min_score)
    targets = _targets(source, suffix)
    if overwrite:
        for target in targets.values():
            for old in SUFFIXES:
                (out / target.with_suffix(old)).unlink(missing_ok=True)
        (out / SETTINGS).unlink(missing_ok=True)
    _claim(out, {"size": size, "suffix": suffix, **settings}, overwrite)

    todo = {name: out / target for name, target in targets.items() if not (out / target).exists()}
    left_out = _align_all(source, todo, find, size)
    with atomic_write(out / LEFT_OUT) as file:
        file.writelines(f"{name}\t{reason}\n".encode(errors="surrogateescape") for name, reason in left_out.items())
    aligned, there = len(todo) - len(left_out), len(targets) - len(todo)
    print(f"{aligned} images aligned, {there} were there already, {len(left_out)} left out: {out / LEFT_OUT}")
    if not aligned + there:
        raise ValueError(f"{source}: none of the {len(targets)} images could be aligned; {out / LEFT_OUT} says why")
    return out


def _align_all(source: Path, todo: Mapping[str, Path], find: Landmarks, size: int) -> dict[str, str]:
    """Align images to the files in `todo`; returns those that are left out, with the reason."""
    left_out: dict[str, str] = {}
    for name, target in tracked(todo.items(), "align", "images"):
        try:
            photo = decode_photo((source / name).read_bytes(), name)
            points = find(photo, name)
            check_face(points, photo.shape[1], photo.shape[0])
            image = align(photo, points, size)
        except ValueError as problem:
            left_out[name] = " ".join(str(problem).removeprefix(f"{name}: ").split())
            say(f"left out: {name}: {left_out[name]}")
            continue
        with atomic_write(target) as file:
            file.write(encode_image(image, target.suffix))
    return left_out


def read_landmarks(path: Path) -> dict[str, np.ndarray]:
    """Read landmarks, (5, 2) float32 each, by path of the image; the layout is that of `make_aligned`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no path with ten finite numbers, or names an image again; the message gives its number.
    """
    found: dict[str, np.ndarray] = {}
    with require_file(path, "a file of landmarks").open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not line or (number == 1 and re.match(r"path\s*[\s,]", line)):
                continue
            name, points = _landmarks(line)
            if points is None:
                raise ValueError(f"{path} line {number}: expected a path and ten finite numbers, got {line[:100]!r}")
            if name in found:
                raise ValueError(f"{path} line {number}: {name} is there twice")
            found[name] = points
    if not found:
        raise ValueError(f"{path}: holds no landmarks")
    return found


def _landmarks(line: str) -> tuple[str, np.ndarray | None]:
    ends = [separator.span() for separator in re.finditer(r"[\s,]+", line)][-10:]  # the path may hold separators too
    if not ends:
        return line, None
    try:
        points = np.array(re.split(r"[\s,]+", line[ends[0][1] :]), np.float32)
    except ValueError:
        return line, None
    return line[: ends[0][0]], points.reshape(5, 2) if len(points) == 10 and np.isfinite(points).all() else None


def _finder(
    landmarks: Path | None, detector: Path | None, face: Choice, detect_at: int, min_score: float
) -> tuple[Landmarks, dict[str, object]]:
    """Make the function that finds landmarks; returns it with the settings that decide about its results."""
    if landmarks is not None and detector is None:
        return _from_file(landmarks), {"landmarks": sha256_of(landmarks)}
    if detector is not None and landmarks is None:
        settings = {"face": face, "detect_at": detect_at, "min_score": min_score}
        return _from_detector(detector, face, detect_at, min_score), {"detector": sha256_of(detector), **settings}
    raise ValueError("expected one of --landmarks and --detector")


def _from_file(path: Path) -> Landmarks:
    known = read_landmarks(path)

    def find(photo: np.ndarray, name: str) -> np.ndarray:
        if name not in known:
            raise ValueError(f"no landmarks in {path}")
        return known[name]

    return find


def _from_detector(path: Path, choice: Choice, detect_at: int, min_score: float) -> Landmarks:
    detector = Detector(path, detect_at, min_score)

    def find(photo: np.ndarray, name: str) -> np.ndarray:
        return chosen_face(detector.faces(photo, name), choice, photo.shape[1], photo.shape[0]).landmarks

    return find


def _targets(source: Path, suffix: str) -> dict[str, Path]:
    """List the images: path in `source`, and path of the aligned image in `out`."""
    targets = {path.as_posix(): path.with_suffix(suffix) for path in image_files(source)}
    sources: dict[Path, str] = {}
    for name, target in targets.items():
        if (twin := sources.setdefault(target, name)) != name:
            raise ValueError(f"{source}: {twin} and {name} would both become {target}; rename one")
    return targets


def _claim(out: Path, settings: Mapping[str, object], overwrite: bool) -> None:
    """Make the folder, or check that the images in it were aligned with these settings."""
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
