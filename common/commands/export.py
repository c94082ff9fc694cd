"""`export`: the backbone of a checkpoint as an ONNX model. Needs no framework."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from common import config as configuration
from common.backend import Backend
from common.weights import checkpoint
from common.weights.checkpoint import latest_checkpoint
from common.weights.onnx_export import DEFAULT_OPSET, Colours, export_onnx


@dataclass(frozen=True)
class Options:
    """Write the backbone of a checkpoint as an ONNX model: pixels 0..255 in, raw embeddings out."""

    source: tyro.conf.Positional[Path]
    """A run folder (its latest checkpoint), or one checkpoint folder of it (step-...)."""
    out: Path
    """The file to write."""
    colours: Colours = "rgb"
    """Order of the channels that the model takes; OpenCV's FaceRecognizerSF hands over rgb."""
    opset: int = DEFAULT_OPSET
    """Version of ONNX's operators."""


def run(backend: Backend, arguments: list[str]) -> int:
    """Export a checkpoint to ONNX; raises as `load_checkpoint` and `export_onnx`."""
    options = tyro.cli(Options, prog=f"python -m {backend.package} export", args=arguments)
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
    return 0
