"""A published file into the arrays of a portable checkpoint: canonical names, our pixel scale, our eps; all checked."""

import mmap
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.weights.architectures import BACKBONES, Layers, layout
from common.weights.checkpoint import check_arrays
from common.weights.foreign import mxnet_file, numpy_pickle, torch_file
from common.weights.foreign.arrays import ForeignArray, ForeignFile
from common.weights.foreign.mxnet_file import Symbol
from common.weights.foreign.names import COUNTER, from_mxnet, from_pytorch, mxnet_layer

OUR_MEAN, OUR_SCALE = Fraction(255, 2), Fraction(1, 128)  # of the pixels: (pixel - mean) * scale
FLOATS = ("float16", "bfloat16", "float32", "float64")
BIASED = ("Jittor", "MXNet")


class Converted(NamedTuple):
    """Weights of a backbone.

    Attributes:
        arrays: canonical name, without "backbone.", to float32 array.
        embedding_size: D.
        notes: for people: what was read, converted and left out.
    """

    arrays: dict[str, np.ndarray]
    embedding_size: int
    notes: list[str]


def convert(
    path: Path, backbone: str, *, image_size: int = 112, pixel_scale: Fraction | None = None, symbol: Path | None = None
) -> Converted:
    """Read published weights and turn them into those of one of our backbones.

    Args:
        path: .pth of PyTorch, .pkl of Jittor or .params of MXNet; told by what it holds, not by its name.
        backbone: the network that it is for.
        image_size: width and height of its input, pixels.
        pixel_scale: what the network multiplies (pixel - 127.5) by; None where a symbol says it. Ours is 1/128. Any
            other goes into the first convolution, which has no bias: exact up to the rounding of its weights.
        symbol: -symbol.json of a .params file; None: the one beside it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, hostile or of another network, or a number is missing; nothing in it was run.
    """
    described = layout(backbone, 1, image_size)
    file = open_file(path)
    mxnet = file.kind == "MXNet"
    facts = mxnet_file.open_symbol(symbol or mxnet_file.symbol_path(path)) if mxnet else None
    if symbol is not None and not mxnet:
        raise ValueError(f"symbol: expected none for a file of {file.kind}, got {symbol}")
    scale = _pixel_scale(path, facts, pixel_scale)

    group, names = _weights(file, described, mxnet, path)
    size = _embedding_size(described, group, names)
    described = layout(backbone, size, image_size)
    _check(path, backbone, described, group, names)
    arrays = {name: group[names[name]].read().astype(np.float32, copy=False) for name in described.shapes}
    notes = [f"{file.kind}: {len(arrays)} arrays of {backbone}, {size}-d"]
    left_out = sorted(name for name in set(group) - set(names.values()) if not name.endswith(COUNTER))
    if left_out:
        notes.append(f"left out: {', '.join(left_out[:3])}" + (f" and {len(left_out) - 3} more" * (len(left_out) > 3)))
    if facts is not None:
        notes += _apply_symbol(facts, described, arrays, path)
    notes.append(_scale_stem(described, arrays, scale))
    if file.kind in BIASED:
        notes.append(
            f"running variances are taken as they are: {file.kind}'s BatchNorm stores the biased ones, "
            "(n - 1) / n of ours, n being the values a channel of its training batch"
        )
    check_arrays({name: ("float32", shape) for name, shape in described.shapes.items()}, arrays)
    return Converted(arrays, size, notes)


def open_file(path: Path) -> ForeignFile:
    """Open a file of one of the formats, which its first bytes tell apart; raises as `convert`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of weights, found none")
    if path.stat().st_size < 16:
        raise ValueError(f"{path}: expected a file of weights, got {path.stat().st_size} bytes")
    with path.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:4] == torch_file.ZIP_MAGIC:
        return torch_file.open_zip(path)
    if data[: len(torch_file.LEGACY_START)] == torch_file.LEGACY_START:
        return torch_file.open_legacy(path, data)
    if data[:8] == mxnet_file.LIST_MAGIC.to_bytes(8, "little"):
        return mxnet_file.open_params(path, data)
    if data[:1] == b"\x80":
        return numpy_pickle.open_pickle(path, data)
    raise ValueError(f"{path}: expected a .pth of PyTorch, a .pkl of Jittor or a .params of MXNet, got something else")


def _pixel_scale(path: Path, symbol: Symbol | None, given: Fraction | None) -> Fraction:
    if symbol is not None and symbol.pixel_mean not in (None, float(OUR_MEAN)):
        raise ValueError(f"{path}: expected a network that subtracts 127.5 from its pixels, got {symbol.pixel_mean}")
    said = None if symbol is None or symbol.pixel_scale is None else Fraction(symbol.pixel_scale)
    if said is not None and given is not None and abs(said / given - 1) > 1e-6:
        raise ValueError(f"pixel-scale: {float(given)} was given, but the symbol of {path} says {float(said)}")
    scale = given if said is None else said
    if scale is None:
        raise ValueError(
            "pixel-scale: expected a number, as the file does not say what its network multiplies (pixel - 127.5) by: "
            "1/127.5 in arcface_torch, 0.078125 in the PyTorch and Jittor code of SFace, 1/128 in MXNet's and here"
        )
    if scale <= 0:
        raise ValueError(f"pixel-scale: expected a positive number, got {float(scale)}")
    return scale


def _weights(
    file: ForeignFile, described: Layers, mxnet: bool, path: Path
) -> tuple[dict[str, ForeignArray], dict[str, str]]:
    """The dict of the file that fits best, and its published names by canonical name."""
    mobilefacenet = "pre_fc1.weight" in described.shapes
    best: tuple[dict[str, ForeignArray], dict[str, str]] | None = None
    for group in file.groups:
        names = from_mxnet(group, mobilefacenet) if mxnet else from_pytorch(group)
        if best is None or len(described.shapes.keys() & names) > len(described.shapes.keys() & best[1]):
            best = group, names
    if best is None:
        raise ValueError(f"{path}: expected arrays by name, found none")
    return best


def _embedding_size(described: Layers, group: dict[str, ForeignArray], names: dict[str, str]) -> int:
    last = next(reversed(described.shapes))  # of the BatchNorm that makes the embeddings
    found = group[names[last]].shape if last in names else ()
    return found[0] if len(found) == 1 and found[0] >= 1 else 1


def _check(path: Path, backbone: str, described: Layers, group: dict[str, ForeignArray], names: dict[str, str]) -> None:
    """Names, shapes and dtypes, before a value is read."""
    problems = [f"{name}: missing" for name in described.shapes if name not in names]
    problems += [f"{published}: unexpected" for name, published in names.items() if name not in described.shapes]
    for name, shape in described.shapes.items():
        array = group[names[name]] if name in names else None
        if array is not None and (array.shape != shape or array.dtype not in FLOATS):
            problems.append(f"{name}: expected {shape} of floating point, got {array.dtype} {array.shape}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        fitting = [other for other in BACKBONES if layout(other).shapes.keys() == names.keys() and other != backbone]
        hint = f"; its names are those of {', '.join(fitting)}" if fitting else ""
        raise ValueError(f"{path} does not fit {backbone}: {'; '.join(problems[:5])}{more}{hint}")


def _apply_symbol(symbol: Symbol, described: Layers, arrays: dict[str, np.ndarray], path: Path) -> list[str]:
    """Give each BatchNorm the eps and the gamma that it was trained with."""
    mobilefacenet = "pre_fc1.weight" in described.shapes
    found = {mxnet_layer(name, mobilefacenet): facts for name, facts in symbol.batch_norms.items()}
    moved = fixed = 0
    for layer, eps in described.eps.items():
        if layer not in found:
            raise ValueError(f"{path}: its symbol has no BatchNorm for {layer}: it is of another network")
        facts = found[layer]
        if facts.fix_gamma:
            arrays[f"{layer}.weight"] = np.ones_like(arrays[f"{layer}.weight"])
            fixed += 1
        if facts.eps != eps:  # only the sum of both is used
            variance = arrays[f"{layer}.running_var"].astype(np.float64) + (facts.eps - eps)
            arrays[f"{layer}.running_var"] = variance.astype(np.float32)
            moved += 1
    notes = [f"{fixed} BatchNorms have fix_gamma: their weights are 1"] if fixed else []
    if moved:
        notes.append(f"{moved} BatchNorms have another eps than ours: the difference is in their running variances")
    return notes


def _scale_stem(described: Layers, arrays: dict[str, np.ndarray], scale: Fraction) -> str:
    stem = next(iter(described.shapes))
    factor = scale / OUR_SCALE
    if abs(factor - 1) < 1e-7:
        return "pixel scale 1/128, as ours"
    arrays[stem] = (arrays[stem].astype(np.float64) * float(factor)).astype(np.float32)
    return f"pixel scale {float(scale):.9g}, ours is 1/128: {stem} is multiplied by {float(factor):.9g}"
