"""Opening what can be evaluated: a run, a checkpoint, an ONNX model, or embeddings in an .npz file."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common import config as configuration
from common.backend import Backend
from common.config import OnWrongSize
from common.evaluation.embedding import Embed
from common.evaluation.onnx_model import AS_IT_IS, OnnxInput, open_onnx
from common.io.npz import read_arrays
from common.weights import checkpoint
from common.weights.checkpoint import latest_checkpoint


@dataclass(frozen=True, eq=False)
class Source:
    """An opened source: a network (`embed`, `image_size`), or embeddings (`arrays`)."""

    description: str  # one line for the user: what it is
    image_size: int = 0  # width and height of the network's input, pixels; 0 for embeddings
    embed: Embed | None = None  # (N, 3, S, S) uint8 RGB, any N >= 1, to (N, D) float32, raw; None for embeddings
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # of the .npz file, by name; empty for a network
    on_wrong_size: OnWrongSize = "fail"  # what the run does with images of another size
    sets: tuple[str, ...] = ()  # evaluation sets of the run's configuration; empty where there is none
    root: Path | None = None  # folder of these; None where there is no configuration
    step: int = 0  # optimiser steps of the weights; 0 where not known
    figures: Path | None = None  # folder of the run's own evaluations; None where there is no run
    warning: str = ""  # what looks wrong with an ONNX model; empty if nothing does

    @property
    def lines(self) -> str:
        """Description and warning, for the user."""
        return self.description + (f"\nwarning: {self.warning}" if self.warning else "")

    @property
    def network(self) -> Embed:
        """`embed`; a ValueError says that there is none."""
        if self.embed is None:
            raise ValueError(f"{self.description}: expected a network, got embeddings")
        return self.embed

    def rows(self, name: str, count: int, otherwise: str = "") -> np.ndarray:
        """The array `name`, (count, D) float; a ValueError says what the file has, and which option does without."""
        if name not in self.arrays:
            alternative = f", or {otherwise}" if otherwise else ""
            raise ValueError(f"{self.description}: expected an array {name!r}{alternative}")
        array = self.arrays[name]
        if array.ndim != 2 or len(array) != count or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{self.description}: expected {name!r} of shape ({count}, D), float")
        return array


def open_source(path: Path, backend: Backend, device: str = "auto", onnx: OnnxInput = AS_IT_IS) -> Source:
    """Open a run folder (its latest checkpoint), a checkpoint folder, MODEL.onnx or EMBEDDINGS.npz.

    Args:
        path: of the source.
        backend: runs the network of a checkpoint; an ONNX model is run by onnxruntime, embeddings need neither.
        device: auto, cpu, cuda or cuda:N.
        onnx: how an ONNX model is called, where it does not say so itself.

    Raises:
        FileNotFoundError: nothing is there, or a folder without a checkpoint.
        ValueError: it is damaged, or something else; the message says what was expected and what came.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".onnx":
        model = open_onnx(path, device, onnx)
        return Source(model.description, model.image_size, model.embed, warning=model.warning)
    if onnx != AS_IT_IS:
        raise ValueError(f"{path}: --pixel-scale, --colours and --output are for ONNX models")
    if path.is_file() and suffix == ".npz":
        return _open_arrays(path)
    if path.is_file():
        raise ValueError(f"{path}: expected a run folder, a checkpoint folder, an .onnx file or an .npz file")
    return _open_checkpoint(latest_checkpoint(path) or path, backend, device)


def _open_checkpoint(path: Path, backend: Backend, device: str) -> Source:
    saved = checkpoint.load_checkpoint(path)
    config = configuration.from_json(saved.state.get("config"))
    config = dataclasses.replace(config, device=device)
    # Embedding needs no prototypes: a head of two classes stands in for one of any size, or for none at all.
    trainer = backend.create_trainer(config, 2)
    head = {name: array for name, array in trainer.state().items() if name.startswith("head.")}
    backbone = {name: array for name, array in saved.arrays.items() if name.startswith("backbone.")}
    trainer.load_weights(backbone | head)
    loss = config.head.name if any(name.startswith("head.") for name in saved.arrays) else "without a head"
    return Source(
        description=f"{path}, {config.model.backbone}, {loss}, {backend.name}",
        image_size=config.data.image_size,
        embed=trainer.embed,
        on_wrong_size=config.data.on_wrong_size,
        sets=config.data.evaluate_on,
        root=config.data.root,
        step=saved.step,
        figures=path.parent.parent / "evaluation",
    )


def _open_arrays(path: Path) -> Source:
    arrays = read_arrays(path)
    shapes = [f"{name} {' x '.join(map(str, array.shape))} {array.dtype}" for name, array in arrays.items()]
    return Source(f"{path}, {', '.join(shapes) or 'empty'}", arrays=arrays)
