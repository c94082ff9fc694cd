"""The examples that train run, and learn."""

import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from common.backend import Backend
from common.commands.main import main
from common.datasets.images import encode_image
from common.tests.yellow_faces import stand_in
from common.weights.checkpoint import latest_checkpoint, load_checkpoint
from data.synthetic import make_synthetic
from examples.comparing_photos import compare
from examples.fine_tuning import fine_tune
from examples.gallery_search import Gallery
from examples.training_loop import train
from pytorch_impl import load
from pytorch_impl.checkpoint import to_canonical
from pytorch_impl.losses import HEADS

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--data.image-size", "16", "--model.backbone", "iresnet_small", "--model.embedding-size", "16"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("faces") / "set", classes=10, images=8, size=16, pairs=20)


def train_command(faces: Path, out: Path, steps: int = 2) -> list[str]:
    steps = ["--optimiser.batch-size", "8", "--optimiser.max-steps", str(steps), "--out", str(out)]
    return ["train", "lfw-small", "--data.root", str(faces), "--data.evaluate-on", "synthetic", *SMALL, *steps]


@pytest.fixture(scope="module")
def run(faces, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(Backend("pytorch"), [*train_command(faces, out, 24), "--optimiser.learning-rate", "0.01"]) == 0
    return out


@pytest.fixture
def photos(tmp_path) -> dict[str, Path]:
    """Two photos of ann, a yellow square, and one of bob: green, with a yellow stripe."""
    found = {}
    for name, stripe in {"ann": slice(20, 100), "ann again": slice(20, 85), "bob": slice(40, 60)}.items():
        image = np.zeros((3, 120, 120), np.uint8)
        image[1, 20:100, 20:100] = 255
        image[0, 20:100, stripe] = 255
        found[name] = tmp_path / "photos" / f"{name}.png"
        found[name].parent.mkdir(exist_ok=True)
        found[name].write_bytes(encode_image(image))
    return found


def assert_learns(cosines: list[float]) -> None:
    assert np.mean(cosines[-3:]) > np.mean(cosines[:3]) + 0.1


def test_a_training_loop_of_ones_own(faces):
    assert_learns(train(faces, image_size=16, steps=12))


@pytest.mark.skipif(find_spec("lightning") is None, reason="PyTorch Lightning is not installed: make test installs it")
def test_lightning(faces):
    from examples.lightning_module import train

    trainer = train(faces, image_size=16, epochs=6, accelerator="cpu", enable_progress_bar=False)
    assert trainer.logged_metrics["target_cosine"] > 0.3


def test_a_head_of_ones_own(faces, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setitem(HEADS, "sface", HEADS["sface"])
    monkeypatch.setattr(sys, "argv", ["own_head", *train_command(faces, out)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("examples.own_head", run_name="__main__")
    assert ended.value.code == 0
    first = json.loads((out / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] > first["intra_loss"] + first["inter_loss"]


def test_fine_tuning(run, faces):
    saved = load_checkpoint(latest_checkpoint(run)).arrays
    frozen, cosines = fine_tune(run, faces, head_steps=8, steps=8)
    assert_learns(cosines)
    assert all(np.array_equal(array, saved[f"backbone.{name}"]) for name, array in to_canonical(frozen).items())
    tuned, _ = fine_tune(run, faces, head_steps=1, steps=2)
    assert all(not np.array_equal(array, saved[f"backbone.{name}"]) for name, array in to_canonical(tuned).items())


def test_comparing_photos(run, photos, tmp_path, monkeypatch):
    detector = stand_in(monkeypatch, tmp_path)
    found = [compare(run, "synthetic", detector, photos["ann"], photos[name]) for name in ("ann again", "bob")]
    assert found[0][0] > found[1][0]
    assert [same for _, same in found] == [cosine > load(run).threshold("synthetic").cosine for cosine, _ in found]


def test_a_gallery_search(run, photos, tmp_path, monkeypatch):
    gallery = Gallery(run, stand_in(monkeypatch, tmp_path), photos["ann"].parent)
    found = gallery.nearest(photos["ann"])
    assert [path.stem for path, _ in found] == ["ann", "ann again", "bob"]
    assert found[0][1] == pytest.approx(1)


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
