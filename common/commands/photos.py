"""What `embed`, `compare` and `identify` share: photos become aligned faces, and a cosine becomes a verdict."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from common.backend import Backend
from common.config import OnWrongSize
from common.datasets.detection import Choice, Detector, align_face
from common.datasets.images import decode_image, decode_photo
from common.evaluation.model import Model
from common.evaluation.onnx_model import AS_IT_IS, OnnxInput
from common.evaluation.source import Source, open_source
from common.io.files import read_regular, require_file


@dataclass(frozen=True)
class FaceOptions:
    """How the face in a photo is found."""

    detector: Path | None = None
    """OpenCV's YuNet (face_detection_yunet_2023mar.onnx of opencv_zoo), which finds faces, to be aligned."""
    face: Choice = "largest"
    """Which of several faces in a photo is taken: the largest one, or the one nearest to the centre."""
    detect_at: int = 640
    """For detection, larger photos are shrunk until their longer side has this many pixels."""
    min_score: float = 0.6
    """The least score of a face, 0 to 1, as the detector gives it."""


@dataclass(frozen=True)
class ModelOptions:
    """The network, and the threshold of its verdicts."""

    set: str | None = None
    """Name of the evaluation set whose threshold decides. Default: the first that the network was evaluated on."""
    threshold: float | None = None
    """The cosine above which two faces are of one person. Default: that of the evaluation set."""
    figures: Path | None = None
    """Folder that `evaluate --out` wrote, with the threshold. Default: that of the run."""
    on_wrong_size: OnWrongSize | None = None
    """What to do with an aligned face whose size is not that of the network's input. Default: as in the run."""
    mirror: bool = True
    """Add the embedding of the mirror image, as `evaluate` does."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    onnx: tyro.conf.OmitArgPrefixes[OnnxInput] = AS_IT_IS


SAME, DIFFERENT, UNKNOWN = "same person", "different people", "no verdict"


class Photo(NamedTuple):
    """The face of a photo."""

    face: np.ndarray  # (3, S, S) uint8 RGB
    note: str  # what was taken, for the user


class Verdicts(NamedTuple):
    """An opened network, and the threshold of its verdicts or why there is none."""

    source: Source
    model: Model
    header: str  # what the network is, for the user
    threshold: float | None  # the cosine above which two faces are of one person
    about: str  # the threshold and its source, or why there is none

    def of(self, cosine: float) -> str:
        if self.threshold is None:
            return UNKNOWN
        return SAME if cosine > self.threshold else DIFFERENT


def photo_reader(source: Source, options: FaceOptions, on_wrong_size: OnWrongSize | None) -> Callable[[Path], Photo]:
    """The function that reads a photo for a network; without a detector, photos are aligned faces.

    `on_wrong_size` is for these; None: as in the run. The function raises a FileNotFoundError, or a BadImage for a
    photo that does not decode or shows no face; both name the file.
    """
    size, on_wrong_size = source.image_size, on_wrong_size or source.on_wrong_size
    if options.detector is None:
        return lambda path: Photo(decode_image(_content(path), str(path), size, on_wrong_size), "taken as it is")
    detector = Detector(options.detector, options.detect_at, options.min_score)

    def read(path: Path) -> Photo:
        photo = decode_photo(_content(path), str(path))
        image, faces = align_face(photo, str(path), detector, options.face, size)
        taken = f"{faces} faces, the {options.face} is taken (--face)" if faces > 1 else "1 face"
        return Photo(image, taken)

    return read


def read_face(read: Callable[[Path], Photo], path: Path) -> np.ndarray:
    """The face alone of a photo, (3, S, S) uint8 RGB."""
    return read(path).face


def check_aligned(options: FaceOptions, aligned: bool) -> None:
    """Raise a ValueError unless either a detector is given, or photos are said to be aligned."""
    if aligned == (options.detector is not None):
        raise ValueError(
            "expected --detector FILE (YuNet, which finds and aligns the faces), or --aligned for photos that are "
            f"aligned already; got {'both' if aligned else 'neither'}"
        )


def open_verdicts(path: Path, backend: Backend, options: ModelOptions) -> Verdicts:
    """Open a network and find its threshold. A set that was asked for must have one."""
    source = open_source(path, backend, options.device, options.onnx)
    model = Model(source, options.figures)
    header = f"{source.lines}\nembeddings: image{' + mirror image' if options.mirror else ' alone'}"
    if options.threshold is not None:
        if not -1 <= options.threshold <= 1:
            raise ValueError(f"--threshold: expected a cosine from -1 to 1, got {options.threshold}")
        about = f"cosine {options.threshold:.4f}, squared distance {2 - 2 * options.threshold:.4f}; --threshold"
        return Verdicts(source, model, header, options.threshold, about)
    name = options.set or next(iter(model.evaluated), None)
    if name is None:
        about = "none; `evaluate --out FOLDER` finds one for --figures FOLDER, or give a cosine with --threshold"
        return Verdicts(source, model, header, None, about)
    try:
        found = model.threshold(name, mirror=options.mirror)
    except ValueError as error:
        if options.set is not None:
            raise
        return Verdicts(source, model, header, None, f"none: {error}")
    about = f"cosine {found.cosine:.4f}, squared distance {found.distance:.4f}; {found.source}"
    return Verdicts(source, model, header, found.cosine, about)


def _content(path: Path) -> bytes:
    return read_regular(require_file(path, "a photo"))
