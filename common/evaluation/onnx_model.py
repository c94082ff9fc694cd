"""An ONNX model as a network that embeds images; onnxruntime runs it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.evaluation.embedding import Embed

COLOURS = ("rgb", "bgr")


class OnnxModel(NamedTuple):
    """An opened model."""

    description: str  # one line for the user
    image_size: int  # width and height of its input, pixels
    embed: Embed  # (N, 3, S, S) uint8 RGB, any N >= 1, to (N, D) float32, raw


def open_onnx(path: Path, device: str) -> OnnxModel:
    """Open a model that takes images and returns embeddings.

    Args:
        path: of the model. Input: one, float32 (N, 3, S, S), pixels 0..255. Output: one, float32 (N, D). The metadata
            `colours`, rgb or bgr, names the order of the channels; without it, rgb is assumed.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: the file is damaged, the model has other inputs or outputs, or onnxruntime lacks the device.
    """
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
    return OnnxModel(f"{path}, onnxruntime {onnxruntime.__version__}, input {convention}", size, embed)


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
    is_image = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and shape[2] in range(1, 2**13 + 1)
    if not is_image or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs) or "none"
        raise ValueError(f"{path}: expected one input tensor(float) [N, 3, S, S], the model has {found}")
    if len(outputs) != 1 or outputs[0].type != "tensor(float)" or len(outputs[0].shape) != 2:
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in outputs)
        raise ValueError(f"{path}: expected one output tensor(float) [N, D], the model has {found}")
    return shape[2], shape[0] if isinstance(shape[0], int) else None


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
