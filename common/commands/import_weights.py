"""`import`: published weights become a checkpoint. Needs no framework."""

import shlex
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import tyro

from common import config as configuration
from common.backend import Backend
from common.config import DataConfig, ModelConfig, RunConfig
from common.evaluation.agreement import check_agreement
from common.io.files import sha256_of
from common.io.text import fraction
from common.recipes import PUBLISHED_SETS
from common.weights.checkpoint import latest_checkpoint, save_checkpoint
from common.weights.foreign.convert import convert


@dataclass(frozen=True)
class Options:
    """Turn published weights into a checkpoint that `evaluate` and `export` take. Nothing in the file is executed."""

    file: tyro.conf.Positional[Path]
    """A .pth of PyTorch, .safetensors, a .pkl of Jittor, a .params of MXNet with its -symbol.json, or an .onnx."""
    backbone: str
    """The network that the weights are of; `info` lists them."""
    out: Path
    """Folder to write; it must hold no checkpoint yet."""
    pixel_scale: str | None = None
    """What the network multiplies (pixel - 127.5) by, as 0.078125 or 1/127.5. Default: as in MXNet's symbol or the
    ONNX graph."""
    symbol: Path | None = None
    """MXNet's -symbol.json. Default: the one beside the .params."""
    image_size: int = 112
    """Width and height of the network's input, pixels."""


def run(backend: Backend, arguments: list[str]) -> int:
    """Import published weights; raises as `convert`, or a ValueError for an option that is out of range."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} import", args=arguments)
    path, notes = import_file(
        options.file,
        options.backbone,
        options.out,
        image_size=options.image_size,
        pixel_scale=None if options.pixel_scale is None else fraction("pixel-scale", options.pixel_scale),
        symbol=options.symbol,
    )
    print("\n".join(notes))
    print(f"checkpoint  {path}\n")
    print(f"python -m {backend.package} evaluate {shlex.quote(str(options.out))} --root FOLDER_OF_THE_SETS")
    return 0


def import_file(
    file: Path,
    backbone: str,
    out: Path,
    *,
    image_size: int = 112,
    pixel_scale: Fraction | None = None,
    symbol: Path | None = None,
) -> tuple[Path, list[str]]:
    """Make a checkpoint in `out` of a published file; returns its path and lines for the user; raises as `convert`."""
    if latest_checkpoint(out) is not None:
        raise ValueError(f"{out}: holds a checkpoint already; choose another folder")
    found = convert(file, backbone, image_size=image_size, pixel_scale=pixel_scale, symbol=symbol)
    notes = list(found.notes)
    if found.kind == "ONNX":
        difference = check_agreement(file, found.arrays, backbone, found.embedding_size, image_size)
        notes.append(f"embeddings of both in onnxruntime: {difference:.1g} of the largest value apart at most")
    config = RunConfig(
        name=f"imported-{backbone}",
        data=DataConfig(Path("datasets"), evaluate_on=PUBLISHED_SETS, image_size=image_size),
        model=ModelConfig(backbone, found.embedding_size),
    )
    configuration.check(config)
    state = {
        "config": configuration.to_json(config),
        "imported": {"file": file.name, "sha256": sha256_of(file), "notes": notes},
    }
    arrays = {f"backbone.{name}": array for name, array in found.arrays.items()}
    return save_checkpoint(out / "checkpoints", 0, arrays, state), notes
