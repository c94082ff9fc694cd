"""What can be evaluated: a run, a checkpoint, an ONNX model, or embeddings in an .npz file; all opened alike."""

import dataclasses
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import config as configuration
from common.config import OnWrongSize
from common.evaluation.evaluate import Embed
from common.weights import checkpoint
from common.weights.checkpoint import latest_checkpoint

if TYPE_CHECKING:
    from common.backend import Backend

COLOURS = ("rgb", "bgr")
MOST_EXPANSION = 100
"""Deflate packs a thousandfold, embeddings hardly at all: what unpacks to more than this is made to fill the memory."""


@dataclass(frozen=True, eq=False)
class Source:
    """An opened source: a network (`embed`, `image_size`), or embeddings (`arrays`).

    Attributes:
        description: one line for people, of what it is.
        image_size: width and height of the network's input, pixels; None for embeddings.
        embed: (N, 3, S, S) uint8 RGB, any N >= 1, to (N, D) float32, raw; None for embeddings.
        arrays: of the .npz file, by name; empty for a network.
        on_wrong_size: what the run does with images of another size.
        sets: evaluation sets of the run's configuration; empty where there is none.
        root: folder of these; None where there is no configuration.
        step: optimiser steps of the weights; 0 where not known.
    """

    description: str
    image_size: int | None = None
    embed: Embed | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    on_wrong_size: OnWrongSize = "fail"
    sets: tuple[str, ...] = ()
    root: Path | None = None
    step: int = 0


def open_source(path: Path, backend: "Backend", device: str = "auto") -> Source:
    """Open a run folder (its latest checkpoint), a checkpoint folder, MODEL.onnx or EMBEDDINGS.npz.

    Args:
        path: of the source.
        backend: runs the network of a checkpoint; an ONNX model is run by onnxruntime, embeddings need neither.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        FileNotFoundError: nothing is there, or a folder without a checkpoint.
        ValueError: it is damaged, or something else; the message says what was expected and what came.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".onnx":
        return _open_onnx(path, device)
    if path.is_file() and suffix == ".npz":
        return _open_arrays(path)
    if path.is_file():
        raise ValueError(f"{path}: expected a run folder, a checkpoint folder, an .onnx file or an .npz file")
    return _open_checkpoint(latest_checkpoint(path) or path, backend, device)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, by name; no pickle is followed, and no size believed before it is checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, holds objects, or unpacks to far more than it is; names the array.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an .npz file, found none")
    arrays = {}
    name = "it"
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                arrays[name] = _read_member(archive, member)
    # what zipfile, zlib and NumPy's reader of headers raise on damage
    except (ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: cannot read {name} ({error})") from None
    return arrays


def _open_checkpoint(path: Path, backend: "Backend", device: str) -> Source:
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
    )


def _open_arrays(path: Path) -> Source:
    arrays = read_arrays(path)
    shapes = [f"{name} {' x '.join(map(str, array.shape))} {array.dtype}" for name, array in arrays.items()]
    return Source(f"{path}, {', '.join(shapes) or 'empty'}", arrays=arrays)


def _open_onnx(path: Path, device: str) -> Source:
    import onnxruntime  # only here: all else works without it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)  # as the frameworks do; 0: all cores
    options.log_severity_level = 3  # errors; they are raised as well
    providers = _providers(onnxruntime, device)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
        if len(session.get_inputs()) > 1:
            session = onnxruntime.InferenceSession(_without_unused_inputs(path), options, providers=providers)
    except Exception as error:  # onnxruntime's and protobuf's own classes have no base but this
        raise ValueError(f"{path}: cannot be opened as an ONNX model ({_first_line(error)})") from None
    size, most = _checked_shape(path, session)
    colours = session.get_modelmeta().custom_metadata_map.get("colours")
    if colours not in (None, *COLOURS):
        raise ValueError(f"{path}: expected colours rgb or bgr in its metadata, got {colours!r}")
    name = session.get_inputs()[0].name

    def embed(images: np.ndarray) -> np.ndarray:
        x = images.astype(np.float32)
        if colours == "bgr":
            x = np.ascontiguousarray(x[:, ::-1])
        parts = [x] if most is None else [x[start : start + most] for start in range(0, len(x), most)]
        return np.concatenate([run(part) for part in parts])

    def run(part: np.ndarray) -> np.ndarray:
        missing = 0 if most is None else most - len(part)
        filled = np.concatenate([part, np.zeros((missing, *part.shape[1:]), np.float32)]) if missing else part
        try:
            return session.run(None, {name: filled})[0][: len(part)]
        except Exception as error:
            raise ValueError(f"{path}: the model fails on images {filled.shape} ({_first_line(error)})") from None

    convention = f"{colours or 'rgb'} 0..255" + ("" if colours else " (assumed: its metadata does not say)")
    return Source(f"{path}, onnxruntime {onnxruntime.__version__}, input {convention}", size, embed)


def _without_unused_inputs(path: Path) -> bytes:
    """The model without inputs that no node reads; OpenCV's quantised SFace lists the weights that it replaced."""
    import onnx

    model = onnx.load(path)
    read = {name for graph in _graphs(model.graph) for node in graph.node for name in node.input}
    for unused in [one for one in model.graph.input if one.name not in read]:
        model.graph.input.remove(unused)
    return model.SerializeToString()


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes (branches, loop bodies)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _checked_shape(path: Path, session: Any) -> tuple[int, int | None]:
    """Image size and batch size (None: any) of a model that takes images and gives embeddings."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    if len(shape) != 4 or inputs[0].type != "tensor(float)" or shape[1] != 3 or not _is_size(shape[2:]):
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs) or "none"
        raise ValueError(f"{path}: expected one input tensor(float) [N, 3, S, S], the model has {found}")
    if len(outputs) != 1 or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 2:
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in outputs)
        raise ValueError(f"{path}: expected one output tensor(float) [N, D], the model has {found}")
    return shape[2], shape[0] if isinstance(shape[0], int) else None


def _is_size(sides: list[Any]) -> bool:
    return isinstance(sides[0], int) and sides[0] == sides[1] and 1 <= sides[0] <= 2**13


def _providers(onnxruntime: Any, device: str) -> list[Any]:
    available = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and not available):
        return ["CPUExecutionProvider"]
    kind, _, index = device.partition(":")
    if device != "auto" and (kind != "cuda" or not (index.isdecimal() or device == "cuda")):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if not available:
        raise ValueError(f"device: {device} asked for, but this onnxruntime is built for the CPU only")
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.file_size > 2**20 + MOST_EXPANSION * member.compress_size:
        raise ValueError(f"{member.compress_size} bytes that unpack to {member.file_size}")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):  # the others are for records of many fields
            raise ValueError(f"version {version} of the .npy format in place of (1, 0)")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError("Python objects, which would have to be unpickled")
        length = math.prod(shape) * dtype.itemsize
        if length != member.file_size - file.tell():
            raise ValueError(f"{member.file_size - file.tell()} bytes in place of {length} for {dtype} {shape}")
        content = file.read(length)
    return np.ndarray(shape, dtype, content, order="F" if is_fortran else "C")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
