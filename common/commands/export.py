"""What `export` and `import` do, for any backend: neither needs its framework."""

import hashlib
import shlex
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from common import config as configuration
from common.config import DataConfig, ModelConfig, RunConfig
from common.recipes import PUBLISHED_SETS
from common.weights import checkpoint
from common.weights.checkpoint import latest_checkpoint
from common.weights.foreign.convert import convert
from common.weights.onnx_export import DEFAULT_OPSET, Colours, export_onnx

if TYPE_CHECKING:
    from common.backend import Backend


@dataclass(frozen=True)
class ExportOptions:
    """Write the backbone of a checkpoint as an ONNX model: pixels 0..255 in, raw embeddings out."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), or one checkpoint folder of it (step-...)."""
    out: Path
    """The file to write."""
    colours: Colours = "rgb"
    """Order of the channels that the model takes; OpenCV's FaceRecognizerSF hands over rgb."""
    opset: int = DEFAULT_OPSET
    """Version of ONNX's operators."""


def export(backend: "Backend", arguments: list[str]) -> None:
    """Export a checkpoint to ONNX.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged, or an option is out of range.
    """
    options = tyro.cli(ExportOptions, prog=f"python -m {backend.package} export", args=arguments)
    path = latest_checkpoint(options.source) or options.source
    saved = checkpoint.load_checkpoint(path)
    config = configuration.from_json(saved.state.get("config"))
    prefix = "backbone."
    export_onnx(
        options.out,
        {name.removeprefix(prefix): array for name, array in saved.arrays.items() if name.startswith(prefix)},
        backbone=config.model.backbone,
        embedding_size=config.model.embedding_size,
        image_size=config.data.image_size,
        colours=options.colours,
        opset=options.opset,
        metadata={"recipe": config.name, "step": str(saved.step)},
    )
    size = config.data.image_size
    print(f"{path}, {config.model.backbone}, step {saved.step}")
    print(f"{options.out}: {options.out.stat().st_size} bytes, opset {options.opset}")
    print(f"  images      (N, 3, {size}, {size}) float32, {options.colours}, 0..255")
    print(f"  embeddings  (N, {config.model.embedding_size}) float32, not normalised")


@dataclass(frozen=True)
class ImportOptions:
    """Turn published weights into a checkpoint that `evaluate` and `export` take. Nothing in the file is executed."""

    file: tyro.conf.Positional[Path]
    """A .pth of PyTorch, a .pkl of Jittor, or a .params of MXNet with its -symbol.json."""
    backbone: str
    """The network that the weights are of; `info` lists them."""
    out: Path
    """Folder to write; it must hold no checkpoint yet."""
    pixel_scale: str | None = None
    """What the network multiplies (pixel - 127.5) by, as 0.078125 or 1/127.5; none: as MXNet's symbol says."""
    symbol: Path | None = None
    """MXNet's -symbol.json; none: the one beside the .params."""
    image_size: int = 112
    """Width and height of the network's input, pixels."""


def import_weights(backend: "Backend", arguments: list[str]) -> None:
    """Import published weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, hostile, of another network, or an option is missing or out of range.
    """
    options = tyro.cli(ImportOptions, prog=f"python -m {backend.package} import", args=arguments)
    if latest_checkpoint(options.out) is not None:
        raise ValueError(f"{options.out}: holds a checkpoint already; choose another folder")
    found = convert(
        options.file,
        options.backbone,
        image_size=options.image_size,
        pixel_scale=None if options.pixel_scale is None else _fraction(options.pixel_scale),
        symbol=options.symbol,
    )
    config = RunConfig(
        name=f"imported-{options.backbone}",
        data=DataConfig(Path("datasets"), evaluate_on=PUBLISHED_SETS, image_size=options.image_size),
        model=ModelConfig(options.backbone, found.embedding_size),
    )
    configuration.check(config)
    with options.file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    state = {
        "config": configuration.to_json(config),
        "imported": {"file": options.file.name, "sha256": digest, "notes": found.notes},
    }
    arrays = {f"backbone.{name}": array for name, array in found.arrays.items()}
    path = checkpoint.save_checkpoint(options.out / "checkpoints", 0, arrays, state)
    for note in found.notes:
        print(note)
    print(f"checkpoint  {path}\n")
    print(f"python -m {backend.package} evaluate {shlex.quote(str(options.out))} --root FOLDER_OF_THE_SETS")


def _fraction(text: str) -> Fraction:
    try:
        over, _, under = text.partition("/")
        return Fraction(over) / Fraction(under or "1")
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"pixel-scale: expected a number such as 0.078125 or 1/127.5, got {text!r}") from None
