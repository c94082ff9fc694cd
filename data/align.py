"""Align the faces in a folder to the template of `common.datasets.alignment`; a file or a detector gives landmarks."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from common.datasets.alignment import TEMPLATE_SIZE, align, check_face
from common.datasets.detection import Choice, Detector, chosen_face
from common.datasets.image_files import image_files
from common.datasets.images import decode_photo, encode_image
from common.io.files import atomic_write, is_inside, read_json, read_regular, sha256_of, write_json
from common.io.progress import say, tracked
from common.io.rows import HEADER, each_row, path_and_numbers
from common.io.text import printable
from common.weights.checkpoint import first_few

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
    if isinstance(find, _Listed):
        find.compare(targets)
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
            photo = decode_photo(read_regular(source / name), name)
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
    for number, line in each_row(path, "a file of landmarks", "surrogateescape"):
        if number == 1 and HEADER.match(line):
            continue
        name, numbers = path_and_numbers(line, 10) or ("", ["nan"])
        points = np.array(numbers, np.float32)
        if not np.isfinite(points).all():
            raise ValueError(f"{path} line {number}: expected a path and ten finite numbers, got {line[:100]!r}")
        if not is_inside(name):
            raise ValueError(f"{path} line {number}: expected a path below the images' folder, got {name[:100]!r}")
        if name in found:
            raise ValueError(f"{path} line {number}: {name} is there twice")
        found[name] = points.reshape(5, 2)
    if not found:
        raise ValueError(f"{path}: holds no landmarks")
    return found


def _finder(
    landmarks: Path | None, detector: Path | None, face: Choice, detect_at: int, min_score: float
) -> tuple[Landmarks, dict[str, object]]:
    """Make the function that finds landmarks; returns it with the settings that decide about its results."""
    if landmarks is not None and detector is None:
        return _Listed(landmarks), {"landmarks": sha256_of(landmarks)}
    if detector is not None and landmarks is None:
        settings = {"face": face, "detect_at": detect_at, "min_score": min_score}
        return _from_detector(detector, face, detect_at, min_score), {"detector": sha256_of(detector), **settings}
    raise ValueError("expected one of --landmarks and --detector")


class _Listed:
    """Landmarks of a file, by name of the image."""

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, read_landmarks(path)

    def __call__(self, photo: np.ndarray, name: str) -> np.ndarray:
        if name not in self._known:
            raise ValueError(f"no landmarks in {self._path}")
        return self._known[name]

    def compare(self, images: Collection[str]) -> None:
        """Say which images and landmarks do not belong together; raises a ValueError if none do."""
        without = [name for name in images if name not in self._known]
        unused = [name for name in self._known if name not in images]
        if len(without) == len(images):
            raise ValueError(
                f"{self._path}: names none of the {len(images)} images, such as {without[0]!r}, but {unused[0]!r}; "
                "expected paths relative to --source"
            )
        notes = {"images have no landmarks there": without, "lines name images that are not there": unused}
        for what, names in notes.items():
            if names:
                first = first_few([ascii(name) for name in names], 3, ", ")
                print(printable(f"note: {self._path}: {len(names)} {what}: {first}"))


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
