"""Weights to start from, and runs that become longer."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from common import config as configuration
from common.config import DataConfig, HeadConfig, ModelConfig, OptimiserConfig, RunConfig
from common.datasets.training_sets import open_dataset
from common.tests.numpy_trainer import NumpyTrainer
from common.training import run_folder
from common.training.loop import fit
from common.training.run_log import read_log
from common.training.start import read_start
from common.weights.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from data.synthetic import make_synthetic

CONFIG = RunConfig("test", DataConfig(Path("unused")), ModelConfig("iresnet_small", 4))
ARRAYS = {
    "backbone.fc.bias": np.ones(4, np.float32),
    "head.class_weight": np.ones((6, 4), np.float32),
    "momentum.backbone.fc.bias": np.ones(4, np.float32),
}


def saved(folder: Path, config: RunConfig = CONFIG, arrays=ARRAYS) -> Path:
    save_checkpoint(folder / "checkpoints", 7, arrays, {"config": configuration.to_json(config)})
    return folder


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_or_a_checkpoint(tmp_path, whole):
    path = saved(tmp_path)
    start = read_start(path if whole else path / "checkpoints" / "step-00000007", CONFIG, 6)
    assert start.arrays.keys() == {"backbone.fc.bias", "head.class_weight"}
    digest = load_checkpoint(path / "checkpoints" / "step-00000007").state["files"]["weights.safetensors"]["sha256"]
    assert (start.record["step"], start.record["sha256"]) == (7, digest)
    assert start.record["taken"] == "backbone and head"


@pytest.mark.parametrize(
    ("head", "classes", "arrays"),
    [
        ("sface", 5, ARRAYS),
        ("arcface", 6, ARRAYS),
        ("sface", 6, {"backbone.fc.bias": ARRAYS["backbone.fc.bias"]}),  # imported weights have no head
    ],
)
def test_another_head_is_not_taken(tmp_path, head, classes, arrays):
    config = dataclasses.replace(CONFIG, head=HeadConfig(head))
    start = read_start(saved(tmp_path, arrays=arrays), config, classes)
    assert start.arrays.keys() == {"backbone.fc.bias"}
    assert start.record["taken"] == "backbone"


def test_the_precision_is_that_of_the_run(tmp_path):
    start = read_start(saved(tmp_path), dataclasses.replace(CONFIG, precision="fp64"), 6)
    assert {array.dtype for array in start.arrays.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": ModelConfig("iresnet18", 4)},
            "has model.backbone iresnet18, this run iresnet_small; --model.backbone",
        ),
        (
            {"model": ModelConfig("iresnet_small", 8)},
            "has model.embedding-size 8, this run 4; --model.embedding-size 8",
        ),
        ({"data": DataConfig(Path("a"), image_size=56)}, "has data.image-size 56, this run 112; --data.image-size 56"),
    ],
)
def test_another_network(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"model.weights: .*step-00000007 {message}"):
        read_start(saved(tmp_path, dataclasses.replace(CONFIG, **change)), CONFIG, 6)


def test_no_checkpoint(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"model.weights: expected the folder of a checkpoint, got a file, .*`import`"):
        read_start(tmp_path / "a.pth", CONFIG, 6)
    with pytest.raises(FileNotFoundError, match=r"model.weights: .*expected a checkpoint folder"):
        read_start(tmp_path / "nothing", CONFIG, 6)
    path = saved(tmp_path / "run") / "checkpoints" / "step-00000007" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model.weights: .*weights.safetensors: expected"):
        read_start(tmp_path / "run", CONFIG, 6)


# The loop


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data") / "faces", classes=6, images=8, size=16, pairs=20)


def configured(faces: Path, weights: Path | None = None, **optimiser) -> RunConfig:
    return RunConfig(
        "test",
        DataConfig(faces, image_size=16),
        ModelConfig(weights=weights),
        optimiser=OptimiserConfig(batch_size=8, milestones=(2,), **optimiser),
        log_every=1,
    )


def run(config: RunConfig, folder: Path) -> NumpyTrainer:
    trainer = NumpyTrainer(config, 6)
    fit(trainer, open_dataset(config.data.root), config, folder)
    return trainer


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in read_log(folder / "log.jsonl") if record["kind"] == "train"]


def test_a_run_starts_from_weights_and_says_so(faces, tmp_path, capsys):
    """Only before its first step: later the file may be gone."""
    before = run(configured(faces, epochs=1), tmp_path / "before")
    config = configured(faces, tmp_path / "before", epochs=1)
    after = run(config, tmp_path / "after")
    assert losses(tmp_path / "after")[0] < min(losses(tmp_path / "before"))
    assert not np.array_equal(after.weight, before.weight)
    assert f"starts from {tmp_path / 'before'}, step 6: its backbone and head" in capsys.readouterr().out
    record = json.loads((tmp_path / "after" / "environment.json").read_text())["weights"]
    assert record == load_checkpoint(latest_checkpoint(tmp_path / "after")).state["weights"]
    assert re.fullmatch("[0-9a-f]{64}", record["sha256"])

    (tmp_path / "before").rename(tmp_path / "gone")
    longer = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, epochs=2))
    run(longer, tmp_path / "after")
    assert json.loads((tmp_path / "after" / "environment.json").read_text())["weights"] == record
    with pytest.raises(FileNotFoundError, match="model.weights"):
        run(longer, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("first", [{"epochs": 3}, {"epochs": 9, "max_steps": 13}])
def test_a_finished_run_becomes_longer(faces, tmp_path, first):
    """And is then the same, to the bit, as one that was this long from the beginning."""
    run(configured(faces, **first), tmp_path / "run")
    trainer = run(configured(faces, epochs=4), tmp_path / "run")
    whole = run(configured(faces, epochs=4), tmp_path / "whole")
    assert (trainer.steps, len(trainer.rates)) == (24, 24 - first.get("max_steps", 18))
    assert np.array_equal(trainer.weight, whole.weight)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["optimiser"]["epochs"] == 4


def test_a_run_of_which_steps_were_taken_does_not_become_shorter_than_these(faces, tmp_path):
    run(configured(faces, epochs=3), tmp_path)
    with pytest.raises(
        ValueError, match=r"epochs 2 and optimiser.max_steps None the run has 12 steps, but 18 were taken"
    ):
        run(configured(faces, epochs=2), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["optimiser"]["epochs"] == 3


def test_a_step_that_would_have_been_another_is_named(faces, tmp_path, monkeypatch):
    """As with a schedule that depends on the number of steps."""
    rates = {2: 0.05, 4: 0.025}  # by epochs, after five steps
    monkeypatch.setattr(run_folder, "scheduled_rate", lambda step, now, _: 0.1 if step < 5 else rates[now.epochs])
    run(configured(faces, epochs=2), tmp_path)
    with pytest.raises(
        ValueError, match=r"learning rate of step 6, which was taken, would have been 0.025 instead of 0.05"
    ):
        run(configured(faces, epochs=4), tmp_path)


def test_a_run_from_before_an_option_was_there_goes_on(faces, tmp_path):
    run(configured(faces, epochs=1), tmp_path)
    old = json.loads((tmp_path / "config.json").read_text())
    del old["model"]["freeze_backbone_steps"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert run(configured(faces, epochs=1), tmp_path).rates == []
