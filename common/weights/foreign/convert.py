"""Turn a published file into the arrays of a portable checkpoint, with canonical names, our pixel scale and our eps."""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.io.files import FileBytes, require_file
from common.weights.architectures import BACKBONES, Layers, layout
from common.weights.checkpoint import check_arrays, first_few
from common.weights.foreign import mxnet_file, numpy_pickle, onnx_file, safetensors_file, torch_file
from common.weights.foreign.arrays import ForeignArray, ForeignFile, Symbol
from common.weights.foreign.names import COUNTER, from_mxnet, from_pytorch, mxnet_layer

OUR_MEAN, OUR_SCALE = Fraction(255, 2), Fraction(1, 128)  # of the pixels: (pixel - mean) * scale
FLOATS = ("float16", "bfloat16", "float32", "float64")
BIASED = ("Jittor", "MXNet")


class Converted(NamedTuple):
    """Weights of a backbone."""

    kind: str  # name of the file's format
    arrays: dict[str, np.ndarray]  # float32 arrays by canonical name, without "backbone."
    embedding_size: int  # D
    notes: list[str]  # lines for the user: what was read, converted and left out


def convert(
    path: Path, backbone: str, *, image_size: int = 112, pixel_scale: Fraction | None = None, symbol: Path | None = None
) -> Converted:
    """Read published weights and turn them into those of one of our backbones.

    Args:
        path: .pth of PyTorch, .safetensors, .pkl of Jittor, .params of MXNet or .onnx. The format is detected from the
            first bytes, not from the file name.
        backbone: the network that the weights are of.
        image_size: width and height of its input, pixels.
        pixel_scale: the network's factor for (pixel - 127.5); None where a symbol or graph says it. Ours is 1/128. Any
            other factor is multiplied into the first convolution, which has no bias; only its weights are rounded.
        symbol: -symbol.json of a .params file; None: the one beside it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, hostile or of another network, or `pixel_scale` is missing; nothing in the
            file was executed.
    """
    described = layout(backbone, 1, image_size)
    file = open_file(path)
    mxnet = file.kind == "MXNet"
    facts = mxnet_file.open_symbol(symbol or mxnet_file.symbol_path(path)) if mxnet else file.symbol
    if symbol is not None and not mxnet:
        raise ValueError(f"symbol: expected none for a file of {file.kind}, got {symbol}")
    scale = _pixel_scale(path, facts, pixel_scale)

    group, names = _weights(file, described, path)
    size = _embedding_size(described, group, names)
    described = layout(backbone, size, image_size)
    _check(path, backbone, described, group, names)
    arrays = {name: group[names[name]].read().astype(np.float32, copy=False) for name in described.shapes}
    notes = [f"{file.kind}: {len(arrays)} arrays of {backbone}, {size}-d"]
    left_out = sorted(name for name in set(group) - set(names.values()) if not name.endswith(COUNTER))
    if left_out:
        notes.append(f"left out: {first_few(left_out, 3, ', ')}")
    if facts is not None:
        notes += _apply_symbol(facts, described, arrays, path)
    notes.append(_scale_stem(described, arrays, scale))
    if file.kind in BIASED:
        notes.append(
            f"running variances are taken as they are: {file.kind}'s BatchNorm stores biased ones, (n - 1) / n times "
            "ours, where n is the number of values a channel in its training batch"
        )
    check_arrays({name: ("float32", shape) for name, shape in described.shapes.items()}, arrays)
    return Converted(file.kind, arrays, size, notes)


def open_file(path: Path) -> ForeignFile:
    """Open a file of one of the formats, detected from its first bytes; raises as `convert`."""
    if (size := require_file(path, "a file of weights").stat().st_size) < 16:
        raise ValueError(f"{path}: expected a file of weights, got {size} bytes")
    data = FileBytes(path)
    if data[:4] == torch_file.ZIP_MAGIC:
        return torch_file.open_zip(path)
    if data[: len(torch_file.LEGACY_START)] == torch_file.LEGACY_START:
        return torch_file.open_legacy(path, data)
    if data[:8] == mxnet_file.LIST_MAGIC.to_bytes(8, "little"):
        return mxnet_file.open_params(path, data)
    if data[:1] == b"\x80":
        return numpy_pickle.open_pickle(path, data)
    if safetensors_file.is_safetensors(data):
        return safetensors_file.open_safetensors(path, data)
    if data[:1] == onnx_file.START:
        return onnx_file.open_model(path, data[:])
    raise ValueError(
        f"{path}: expected a .pth of PyTorch, .safetensors, a .pkl of Jittor, a .params of MXNet or an .onnx, got "
        "something else"
    )


def _pixel_scale(path: Path, symbol: Symbol | None, given: Fraction | None) -> Fraction:
    if symbol is not None and symbol.pixel_mean not in (None, float(OUR_MEAN)):
        raise ValueError(f"{path}: expected a network that subtracts 127.5 from its pixels, got {symbol.pixel_mean}")
    said = None if symbol is None or symbol.pixel_scale is None else Fraction(symbol.pixel_scale)
    if said is not None and given is not None and abs(said / given - 1) > 1e-6:
        raise ValueError(f"pixel-scale: {float(given)} was given, but the graph of {path} says {float(said)}")
    scale = given if said is None else said
    if scale is None:
        raise ValueError(
            "pixel-scale: expected a number, the network's factor for (pixel - 127.5), as the file does not hold it: "
            "1/127.5 in arcface_torch, 0.078125 in the PyTorch and Jittor code of SFace, 1/128 in MXNet's and here"
        )
    if scale <= 0:
        raise ValueError(f"pixel-scale: expected a positive number, got {float(scale)}")
    return scale


def _weights(file: ForeignFile, described: Layers, path: Path) -> tuple[dict[str, ForeignArray], dict[str, str]]:
    """Find the dict of the file that fits best; returns it with its published names by canonical name."""
    named: list[tuple[dict[str, ForeignArray], dict[str, str]]] = []
    try:
        for group in file.groups:
            if file.kind != "MXNet":
                named.append((group, from_pytorch(group, described.shapes)))
            if file.kind in ("MXNet", "ONNX"):
                named.append((group, from_mxnet(group, _is_mobile(described))))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not named:
        raise ValueError(f"{path}: expected arrays by name, found none")
    return max(named, key=lambda pair: len(described.shapes.keys() & pair[1]))


def _embedding_size(described: Layers, group: dict[str, ForeignArray], names: dict[str, str]) -> int:
    last = next(reversed(described.shapes))  # the running variance of the BatchNorm that makes the embeddings
    found = group[names[last]].shape if last in names else ()
    return found[0] if len(found) == 1 and found[0] >= 1 else 1


def _check(path: Path, backbone: str, described: Layers, group: dict[str, ForeignArray], names: dict[str, str]) -> None:
    """Check names, shapes and dtypes before a value is read."""
    shapes = described.shapes
    problems = [f"{name}: missing" for name in shapes if name not in names]
    others = [published for name, published in names.items() if name not in shapes]
    for name in (name for name in shapes if name in names):
        array = group[names[name]]
        if array.shape != shapes[name] or array.dtype not in FLOATS:
            problems.append(f"{name}: expected {shapes[name]} of floating point, got {array.dtype} {array.shape}")
    if problems or others:
        fitting = [other for other in BACKBONES if layout(other).shapes.keys() == names.keys() and other != backbone]
        hint = f"; its names are those of {', '.join(fitting)}" if fitting else ""
        unexpected = [f"unexpected in the file: {first_few(others, 3, ', ')}"] if others else []
        found = "; ".join([*([first_few(problems)] if problems else []), *unexpected])
        raise ValueError(f"{path} does not fit {backbone}: {found}{hint}")


def _apply_symbol(symbol: Symbol, described: Layers, arrays: dict[str, np.ndarray], path: Path) -> list[str]:
    """Give each BatchNorm the eps and the gamma of its training; returns notes for the user."""
    mobile, canonical = _is_mobile(described), symbol.batch_norms.keys() <= described.eps.keys()
    found = {name if canonical else mxnet_layer(name, mobile): facts for name, facts in symbol.batch_norms.items()}
    moved = fixed = 0
    for layer, eps in described.eps.items():
        if layer not in found:
            raise ValueError(f"{path}: its graph has no BatchNorm for {layer}: it is of another network")
        facts = found[layer]
        if facts.fix_gamma:
            arrays[f"{layer}.weight"] = np.ones_like(arrays[f"{layer}.weight"])
            fixed += 1
        if facts.eps != eps:  # only variance + eps is used
            variance = arrays[f"{layer}.running_var"].astype(np.float64) + (facts.eps - eps)
            arrays[f"{layer}.running_var"] = variance.astype(np.float32)
            moved += 1
    notes = [f"{fixed} BatchNorms have fix_gamma: their weights are 1"] if fixed else []
    if moved:
        notes.append(f"{moved} BatchNorms have another eps than ours: the difference is in their running variances")
    return notes


def _is_mobile(described: Layers) -> bool:
    """Whether it is one of the networks that MXNet's files name alike."""
    return "pre_fc1.weight" in described.shapes


def _scale_stem(described: Layers, arrays: dict[str, np.ndarray], scale: Fraction) -> str:
    stem = next(iter(described.shapes))
    factor = scale / OUR_SCALE
    if abs(factor - 1) < 1e-7:
        return "pixel scale 1/128, as ours"
    arrays[stem] = (arrays[stem].astype(np.float64) * float(factor)).astype(np.float32)
    return f"pixel scale {float(scale):.9g}, ours is 1/128: {stem} is multiplied by {float(factor):.9g}"
