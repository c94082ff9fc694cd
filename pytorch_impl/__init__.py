"""SFace in PyTorch: loss, baseline heads, backbones and trainer. `python -m pytorch_impl --help` lists the commands."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.backend import Backend, check_framework

if TYPE_CHECKING:
    from common.evaluation.model import Model
    from common.evaluation.onnx_model import OnnxInput

check_framework("pytorch")


def load(
    source: str | Path,
    *,
    device: str = "auto",
    figures: str | Path | None = None,
    onnx: "OnnxInput | None" = None,
) -> "Model":
    """Open a trained network, to embed and compare faces with.

    Args:
        source: a run folder (its latest checkpoint), a checkpoint folder, or MODEL.onnx, which onnxruntime runs.
        device: auto, cpu, cuda or cuda:N.
        figures: folder that `evaluate --out` wrote, for `Model.threshold`; None: that of the run.
        onnx: how an ONNX model from elsewhere is called: pixel scale, colours, output; None: as it says itself.

    Raises:
        FileNotFoundError: nothing is there, or a folder without a checkpoint.
        ValueError: it is damaged, or no network; the message says what was expected and what came.

    >>> model = load("runs/pytorch/orl-demo-seed0")  # doctest: +SKIP
    >>> ann, bob = model.embed(["aligned/ann.png", "aligned/bob.png"])  # doctest: +SKIP
    >>> model.similarity(ann, bob) > model.threshold("orl").cosine  # doctest: +SKIP
    False
    """
    from common.evaluation.model import load_model  # only here: what it needs takes a second

    return load_model(source, Backend("pytorch"), device=device, figures=figures, onnx=onnx)
