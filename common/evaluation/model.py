"""A network to call from Python: the same for the runs and checkpoints of every backend, and for ONNX models.

`load` of pytorch_impl, mxnet_impl or jittor_impl opens one; `load_model` opens ONNX models without a framework.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.backend import BACKENDS, Backend
from common.config import OnWrongSize
from common.datasets.detection import Choice, Detector, align_face
from common.datasets.image_files import image_files
from common.datasets.images import decode_image, decode_photo
from common.evaluation.embedding import embed_all
from common.evaluation.onnx_model import AS_IT_IS, OnnxInput
from common.evaluation.results import load_evaluation
from common.evaluation.source import Source, open_source
from common.evaluation.verification import cosine_of
from common.io.files import file_stem, read_regular, require_file


class Threshold(NamedTuple):
    """What `evaluate` found on a set: a pair is one person above the cosine, which is below the squared distance."""

    cosine: float
    distance: float  # squared L2 of unit vectors, 0 to 4
    mirror: bool  # of embeddings to which those of the mirror images were added
    source: str  # the set, and the file that says so


class Model:
    """A network that embeds aligned faces.

    Args:
        source: an opened network.
        figures: folder of SET.json and SET.npz, as `evaluate --out` writes them; None: there are none.

    Raises:
        ValueError: the source holds embeddings and no network.

    Attributes:
        description: one line: where it comes from and what it is.
        image_size: S, width and height of its input in pixels.
    """

    def __init__(self, source: Source, figures: Path | None = None) -> None:
        self._embed = source.network
        self._source = source
        self._figures = figures or source.figures
        self._checks_step = figures is None
        self.description, self.image_size = source.description, source.image_size

    def embed(
        self,
        images: np.ndarray | str | Path | Sequence[str | Path],
        *,
        mirror: bool = True,
        batch_size: int = 64,
        on_wrong_size: OnWrongSize | None = None,
    ) -> np.ndarray:
        """Embed aligned faces.

        Args:
            images: (N, S, S, 3) uint8, RGB; or paths of images; or the path of an image or of a folder, whose images
                and those of its subfolders are taken in the order of their names.
            mirror: add the embeddings of the mirror images, as `evaluate` does; False: as OpenCV does.
            batch_size: images at a time.
            on_wrong_size: what to do with a file whose image is not S x S: "fail" or "resize"; None: as in the run.

        Returns:
            (N, D) float32, not normalised.

        Raises:
            FileNotFoundError: there is no such file, or no image in the folder.
            BadImage: a file does not decode, or has another size; named. A ValueError.
            ValueError: an array of another shape or dtype, no images, or embeddings that are not finite.

        >>> embeddings = model.embed("aligned/ann")  # doctest: +SKIP
        """
        names: Sequence[str]
        readers: Sequence[Callable[[], np.ndarray]]
        if isinstance(images, np.ndarray):
            self._check_array(images)
            names = [f"image {place}" for place in range(len(images))]
            readers = [partial(np.ascontiguousarray, image.transpose(2, 0, 1)) for image in images]
        else:
            paths = _paths(images)
            names = [str(path) for path in paths]
            readers = [partial(self._read, path, on_wrong_size or self._source.on_wrong_size) for path in paths]
        if not names:
            raise ValueError("expected at least one image, got none")
        first, *others = embed_all(self._embed, names, readers, batch_size=batch_size, mirror=mirror).views
        return sum(others, first).astype(np.float32, copy=False)

    def align(
        self, photo: np.ndarray | str | Path, *, detector: Detector | str | Path, face: Choice = "largest"
    ) -> np.ndarray:
        """Find a face in a photo and align it for `embed`.

        Args:
            photo: (H, W, 3) uint8, RGB; or the path of a photo.
            detector: OpenCV's YuNet, opened or the path of its ONNX file. For many photos open it once:
                `common.datasets.detection.Detector(path)`.
            face: which of several faces is taken: the "largest", or the most "central".

        Returns:
            (S, S, 3) uint8, RGB.

        Raises:
            FileNotFoundError: the photo or the detector is not there.
            BadImage: the photo does not decode, or shows no face; named. A ValueError.
            ValueError: the detector is none, or the array is no photo.

        >>> face = model.align("ann.jpg", detector="face_detection_yunet_2023mar.onnx")  # doctest: +SKIP
        >>> embeddings = model.embed(face[None])  # doctest: +SKIP
        """
        name = "photo" if isinstance(photo, np.ndarray) else str(photo)
        if not isinstance(photo, np.ndarray):
            photo = decode_photo(read_regular(require_file(Path(photo), "a photo")), name)
        elif photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8 or not photo.size:
            raise ValueError(f"expected a photo (H, W, 3) uint8, RGB, got {photo.shape} {photo.dtype}")
        if not isinstance(detector, Detector):
            detector = Detector(Path(detector))
        return align_face(photo, name, detector, face, self.image_size).image.transpose(1, 2, 0)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosines of embeddings: `cosines`."""
        return cosines(a, b)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Names of the sets that have a threshold; those of the run's configuration first."""
        if self._figures is None:
            return ()
        files = [path for path in sorted(self._figures.glob("*.json")) if path.with_suffix(".npz").is_file()]
        found = [path.stem for path in files if "." not in path.stem]  # SET.raw_pixels is a baseline
        own = [name for name in self._source.sets if name in found]
        return tuple(dict.fromkeys([*own, *found]))

    def threshold(self, name: str, *, mirror: bool = True) -> Threshold:
        """The threshold that was best on a set, as `evaluate` found it: the mean over the folds.

        Args:
            name: of the set.
            mirror: for embeddings to which those of the mirror images were added, as `embed` does.

        Raises:
            ValueError: this network was not evaluated on the set, or not without mirror images; says how to do it.

        >>> model.threshold("lfw").cosine  # doctest: +SKIP
        0.2885
        """
        advice = "`evaluate SOURCE --sets SET --out FOLDER` measures it, and FOLDER is then given as figures"
        if self._figures is None:
            raise ValueError(f"{self.description}: expected figures with the threshold of {name}; {advice}")
        path = self._figures / f"{file_stem(name)}.json"
        if not path.is_file():
            found = ", ".join(self.evaluated) or "none"
            raise ValueError(f"{path}: expected the figures of {name}, found those of: {found}; {advice}")
        saved = load_evaluation(path)
        if self._checks_step and saved.step != self._source.step:
            raise ValueError(
                f"{path}: is of step {saved.step}, the network of step {self._source.step}; evaluate it; {advice}"
            )
        evaluation = saved.evaluation
        distance = evaluation.result.threshold if mirror else evaluation.plain_threshold
        if distance is None:
            raise ValueError(f"{path}: holds no threshold without mirror images; {advice}")
        return Threshold(cosine_of(distance), distance, mirror, f"{name}, {path}")

    def _check_array(self, images: np.ndarray) -> None:
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3) or images.dtype != np.uint8:
            raise ValueError(f"expected images (N, {size}, {size}, 3) uint8, RGB, got {images.shape} {images.dtype}")

    def _read(self, path: Path, on_wrong_size: OnWrongSize) -> np.ndarray:
        return decode_image(read_regular(require_file(path, "an image")), str(path), self.image_size, on_wrong_size)


def load_model(
    source: str | Path,
    backend: Backend | None = None,
    *,
    device: str = "auto",
    figures: str | Path | None = None,
    onnx: OnnxInput | None = None,
) -> Model:
    """Open a network; `load` of a backend's package is this with its backend.

    Args:
        source: a run folder (its latest checkpoint), a checkpoint folder, or MODEL.onnx.
        backend: runs the network of a checkpoint; None: an ONNX model.
        device: auto, cpu, cuda or cuda:N.
        figures: folder that `evaluate --out` wrote, for `Model.threshold`; None: that of the run.
        onnx: how an ONNX model from elsewhere is called: pixel scale, colours, output; None: as it says itself.

    Raises:
        FileNotFoundError: nothing is there, or a folder without a checkpoint.
        ValueError: it is damaged, or no network; the message says what was expected and what came.

    An ONNX model that does not seem to normalise its pixels gives a warning.
    """
    path = Path(source)
    if backend is None and path.suffix.lower() != ".onnx":
        packages = ", ".join(Backend(name).package for name in BACKENDS)
        raise ValueError(f"{path}: expected an ONNX model; `load` of {packages} opens runs and checkpoints")
    opened = open_source(path, backend or Backend("onnxruntime"), device, onnx or AS_IT_IS)
    if opened.warning:
        warnings.warn(opened.warning, stacklevel=3)
    return Model(opened, None if figures is None else Path(figures))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each embedding of `a` with each of `b`; squared distance is 2 - 2 cos.

    Args:
        a: (N, D) or (D,), float; need not be normalised.
        b: (M, D) or (D,), float.

    Returns:
        (N, M), (N,), (M,) or () float64, -1 to 1. A zero vector has no direction, and cosine 0 with all others.

    Raises:
        ValueError: other shapes, or values that are not finite.

    >>> cosines(np.array([3.0, 4.0]), np.array([[2.0, 0.0], [-3.0, -4.0]]))
    array([ 0.6, -1. ])
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if {a.ndim, b.ndim} - {1, 2} or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"expected embeddings (N, D) or (D,) and (M, D) or (D,), got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("expected finite embeddings, got NaN or infinity")
    return np.clip(_unit(a) @ _unit(b).T, -1, 1)


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _paths(images: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(images, str | Path):
        return [Path(image) for image in images]
    path = Path(images)
    return [path / file for file in image_files(path)] if path.is_dir() else [path]
