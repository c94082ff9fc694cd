"""An ONNX model as a network that embeds images; onnxruntime runs it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import tyro

from common.evaluation.embedding import Embed
from common.io.text import fraction

Colours = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class OnnxInput:
    """How a model that comes from elsewhere is called. Models of `export` need none of this."""

    pixel_scale: Annotated[str | None, tyro.conf.arg(aliases=["--scale"])] = None
    """Give the model (pixel - 127.5) times this number, as 1/127.5 or 0.0078125. Default: the pixels, 0..255."""
    colours: Annotated[Colours | None, tyro.conf.arg(aliases=["--colors"])] = None
    """Order of the channels that the model takes. Default: as its metadata say, or else rgb."""
    output: str | None = None
    """Name of the output that holds the embeddings. Default: the only one."""


AS_IT_IS = OnnxInput()


class OnnxModel(NamedTuple):
    """An opened model."""

    description: str  # one line for the user
    image_size: int  # width and height of its input, pixels
    embed: Embed  # (N, 3, S, S) uint8 RGB, any N >= 1, to (N, D) float32, raw
    warning: str  # what looks wrong; empty if nothing does


def open_onnx(path: Path, device: str, given: OnnxInput = AS_IT_IS) -> OnnxModel:
    """Open a model that takes images and returns embeddings.

    Args:
        path: of the model. Input: one, float32 (N, 3, S, S), pixels 0..255. Output: float32 (N, D), the only one or the
            one that `given` names. The metadata `colours`, rgb or bgr, names the order of the channels; without it,
            rgb is assumed.
        device: auto, cpu, cuda or cuda:N.
        given: scale of the pixels, colours and output, where the model does not say.

    Raises:
        ValueError: the file is damaged, the model has other inputs or outputs, or onnxruntime lacks the device.
    """
    scale = None if given.pixel_scale is None else float(fraction("--pixel-scale", given.pixel_scale))
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
    size, most = _checked_input(path, session)
    output = _checked_output(path, session, given.output)
    stated = given.colours or session.get_modelmeta().custom_metadata_map.get("colours")
    if stated not in (None, *get_args(Colours)):
        raise ValueError(
            f"{path}: expected colours rgb or bgr in its metadata, got {stated!r}; --colours overrides them"
        )
    name = session.get_inputs()[0].name

    def embed(images: np.ndarray) -> np.ndarray:
        x = images.astype(np.float32)
        if stated == "bgr":
            x = np.ascontiguousarray(x[:, ::-1])
        if scale is not None:
            x = (x - np.float32(127.5)) * np.float32(scale)
        parts = [x] if most is None else [x[start : start + most] for start in range(0, len(x), most)]
        return np.concatenate([run(part) for part in parts])

    def run(part: np.ndarray) -> np.ndarray:
        missing = 0 if most is None else most - len(part)
        filled = np.concatenate([part, np.zeros((missing, *part.shape[1:]), np.float32)]) if missing else part
        try:
            return session.run([output], {name: filled})[0][: len(part)]
        except Exception as error:
            raise ValueError(f"{path}: the model fails on images {filled.shape} ({_first_line(error)})") from None

    pixels = "0..255" if scale is None else f"(0..255 - 127.5) * {given.pixel_scale}"
    convention = f"{stated or 'rgb'} {pixels}" + ("" if stated else " (assumed: its metadata does not say)")
    warning = ""
    if scale is None and not _normalises(path, name):
        warning = (
            f"{path} does not begin with a normalisation of its pixels (Sub, Mul, Div) and is given 0..255; a network "
            "trained on other values needs --pixel-scale, as 1/127.5 for models of insightface, and perhaps --colours"
        )
    return OnnxModel(f"{path}, onnxruntime {onnxruntime.__version__}, input {convention}", size, embed, warning)


_PASSED = {
    *("Cast", "Identity", "Clip", "Pad", "QuantizeLinear", "DequantizeLinear"),
    *("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Split", "Slice", "Gather", "Concat"),
}
_NORMALISING = {"Sub", "Add", "Mul", "Div", "BatchNormalization", "InstanceNormalization"}


def _normalises(path: Path, name: str) -> bool:
    """Whether all that reads the input `name` shifts or scales it before anything else."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    names, readers = {name}, []
    for node in nodes:  # in the order of their data
        if names.isdisjoint(node.input) or node.op_type == "Shape":
            continue
        if node.op_type in _PASSED:
            names.update(node.output)
        else:
            readers.append(node.op_type)
    return _NORMALISING.issuperset(readers)


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


def _checked_input(path: Path, session: Any) -> tuple[int, int | None]:
    """Image size and batch size (None: any) of a model that takes images."""
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    is_image = len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] and shape[2] in range(1, 2**13 + 1)
    if not is_image or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs) or "none"
        raise ValueError(f"{path}: expected one input tensor(float) [N, 3, S, S], the model has {found}")
    return shape[2], shape[0] if isinstance(shape[0], int) else None


def _checked_output(path: Path, session: Any, name: str | None) -> str:
    """The name of the output that holds the embeddings."""
    outputs = session.get_outputs()
    found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in outputs)
    chosen = [one for one in outputs if name in (None, one.name)]
    if len(chosen) != 1 or chosen[0].type != "tensor(float)" or len(chosen[0].shape) != 2:
        wanted = "one output" if name is None else f"an output {name}"
        advice = "; --output NAME chooses one" if len(outputs) > 1 else ""
        raise ValueError(f"{path}: expected {wanted} tensor(float) [N, D], the model has {found}{advice}")
    return chosen[0].name


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
