"""The examples that train run, and learn."""

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from data.synthetic import make_synthetic
from examples.training_loop import train
from pytorch_impl.losses import HEADS

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--data.image-size", "16", "--model.backbone", "iresnet_small", "--model.embedding-size", "16"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("faces") / "set", classes=10, images=8, size=16, pairs=20)


def assert_learns(cosines: list[float]) -> None:
    assert np.mean(cosines[-3:]) > np.mean(cosines[:3]) + 0.1


def test_a_training_loop_of_ones_own(faces):
    assert_learns(train(faces, image_size=16, steps=12))


@pytest.mark.skipif(find_spec("lightning") is None, reason="PyTorch Lightning is not installed: pip install lightning")
def test_lightning(faces):
    from examples.lightning_module import train

    trainer = train(faces, image_size=16, epochs=6, accelerator="cpu", enable_progress_bar=False)
    assert trainer.logged_metrics["target_cosine"] > 0.3


def test_a_head_of_ones_own(faces, tmp_path, monkeypatch):
    out = tmp_path / "run"
    steps = ["--optimiser.batch-size", "8", "--optimiser.max-steps", "2", "--out", str(out)]
    command = ["train", "lfw-small", "--data.root", str(faces), "--data.evaluate-on", "synthetic", *SMALL, *steps]
    monkeypatch.setitem(HEADS, "sface", HEADS["sface"])
    monkeypatch.setattr(sys, "argv", ["own_head", *command])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("examples.own_head", run_name="__main__")
    assert ended.value.code == 0
    first = json.loads((out / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] > first["intra_loss"] + first["inter_loss"]


def test_the_notebook(tmp_path, monkeypatch, capsys):
    """Its cells one after the other, with a smaller network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    cells = json.loads((EXAMPLES / "demo.ipynb").read_text("utf-8"))["cells"]
    names = {"__name__": "notebook"}
    small = [*SMALL, "--data.on-wrong-size", "resize", "--optimiser.max-steps", "4", "--log-every", "1"]
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        exec("".join(cell["source"]).replace("options = []", f"options = {small}"), names)
    assert "SFace" in capsys.readouterr().out
    assert (tmp_path / "runs" / "pytorch" / "notebook" / "report.html").exists()
