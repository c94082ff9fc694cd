"""The loop: what it writes and when, how it stops, and that going on is the same as never having stopped."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.config import DataConfig, HeadConfig, OptimiserConfig, RunConfig
from common.datasets.images import BadImage, encode_image
from common.datasets.pair_sets import open_pair_set, write_pair_set
from common.datasets.training_sets import open_dataset
from common.tests.numpy_trainer import NumpyTrainer
from common.training.angles import intra_weight
from common.training.loop import Stopped, fit
from common.training.run_log import read_log
from common.training.schedule import learning_rate
from common.weights import checkpoint
from common.weights.checkpoint import latest_checkpoint
from data.synthetic import make_synthetic


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data") / "faces", classes=6, images=8, size=16, pairs=20)


def configured(faces: Path, **options) -> RunConfig:
    config = RunConfig(
        name="test",
        data=DataConfig(root=faces, evaluate_on=("synthetic",), image_size=16),
        optimiser=OptimiserConfig(batch_size=8, epochs=5, milestones=(3,), warmup_steps=4),
        log_every=1,
        evaluate_every=10,
        save_every=7,
    )
    return dataclasses.replace(config, **options)


def run(config: RunConfig, folder: Path, **options) -> NumpyTrainer:
    dataset = open_dataset(config.data.root)
    trainer = NumpyTrainer(config, dataset.num_classes, **options)
    fit(trainer, dataset, config, folder)
    return trainer


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_log(folder / "log.jsonl") if r["kind"] == "train"]


def test_a_whole_run(faces, tmp_path):
    config = configured(faces)
    trainer = run(config, tmp_path / "run")
    assert trainer.steps == 30  # 48 images, batches of 8, 5 epochs
    assert trainer.rates == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 15 + [0.01] * 12)

    records = read_log(tmp_path / "run" / "log.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in train] == list(range(1, 31))
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == [10, 20, 30]
    assert train[-1]["loss"] < train[0]["loss"] / 2, "it must learn"
    assert train[-1]["epoch"] == 5
    assert train[-1]["images_per_second"] > 0
    assert (tmp_path / "run" / "evaluation" / "synthetic.json").exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["name"] == "test"
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["backend"] == {"name": "numpy"}
    assert environment["numpy"] == np.__version__


def test_latest_and_best_checkpoints_are_kept(faces, tmp_path):
    run(configured(faces), tmp_path)
    steps = [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "checkpoints")]
    state = checkpoint.load_checkpoint(latest_checkpoint(tmp_path)).state["progress"]
    accuracies = {r["step"]: r["accuracy"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "evaluation"}
    best = max(accuracies, key=accuracies.get)  # the first of equal ones
    assert state["best_step"] == best
    assert state["best_accuracy"] == accuracies[best]
    assert steps == sorted({best, 28, 30})


def test_a_worse_evaluation_does_not_become_the_best(faces, tmp_path):
    class GoodAt20(NumpyTrainer):
        def embed(self, images):
            x = super().embed(images)
            return x if self.steps == 20 else np.ones_like(x)

    fit(GoodAt20(configured(faces), 6), open_dataset(faces), configured(faces), tmp_path)
    assert latest_checkpoint(tmp_path).name == "step-00000030"
    assert checkpoint.load_checkpoint(latest_checkpoint(tmp_path)).state["progress"]["best_step"] == 20
    assert (tmp_path / "checkpoints" / "step-00000020").exists()


def test_skipped_images_are_counted_over_the_run(faces, tmp_path):
    class Broken:
        num_classes, fingerprint = 6, ""

        def __len__(self) -> int:
            return 48

        def sample(self, index):
            sample = open_dataset(faces).sample(index)
            return sample._replace(encoded=b"broken") if index == 17 else sample

    config = configured(faces)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, on_bad_image="skip"))
    fit(NumpyTrainer(config, 6), Broken(), config, tmp_path)
    assert read_log(tmp_path / "log.jsonl")[-2]["skipped"] == 5, "once an epoch"


def test_the_end_is_always_logged_evaluated_and_saved(faces, tmp_path):
    config = configured(faces, log_every=1000, evaluate_every=1000, save_every=1000)
    run(config, tmp_path)
    assert [(r["kind"], r["step"]) for r in read_log(tmp_path / "log.jsonl")] == [("train", 30), ("evaluation", 30)]
    assert latest_checkpoint(tmp_path).name == "step-00000030"


def test_a_missing_evaluation_set_is_reported(faces, tmp_path, capsys):
    config = configured(faces)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, evaluate_on=("lfw", "synthetic")))
    run(config, tmp_path)
    assert f"evaluation set lfw: not found at {faces / 'lfw.bin'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"broken", "bad image 39: 6 bytes do not decode as an image"),
        (encode_image(np.zeros((3, 32, 32), np.uint8)), "bad image 39: expected 16x16 pixels, got 32x32"),
    ],
)
def test_pictures_of_an_evaluation_set_are_checked_before_the_first_step(faces, tmp_path, picture, message):
    root = shutil.copytree(faces, tmp_path / "faces")
    whole = open_pair_set(faces / "synthetic.bin")
    pictures = [whole.encoded(index) for index in range(39)]
    write_pair_set(root / "bad.bin", [*pictures, picture], whole.issame)
    config = configured(faces, data=DataConfig(root=root, evaluate_on=("synthetic", "bad"), image_size=16))
    with pytest.raises(BadImage, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class StopAt(NumpyTrainer):
    """Does something to its own process in the middle of a step."""

    def __init__(self, *arguments, step: int, action) -> None:
        super().__init__(*arguments)
        self.step, self.action = step, action

    def train_step(self, images, labels, learning_rate) -> None:
        super().train_step(images, labels, learning_rate)
        if self.steps == self.step:
            self.action()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [1, 7, 12, 29])
def test_a_stopped_run_goes_on_as_if_it_had_not(faces, tmp_path, monkeypatch, step, number):
    config = configured(faces)
    run(config, tmp_path / "unbroken")
    dataset = open_dataset(faces)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # these tests may run under nohup
    stopping = StopAt(config, 6, step=step, action=lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match=f"stopped after step {step} of 30"):
        fit(stopping, dataset, config, tmp_path / "stopped")
    assert latest_checkpoint(tmp_path / "stopped").name == f"step-{step:08d}"
    resumed = run(config, tmp_path / "stopped")
    assert resumed.rates[0] == pytest.approx(learning_rate(step, 0.1, [18], 4))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "unbroken")
    for name in ("weights", "training"):
        one, other = (
            (latest_checkpoint(tmp_path / folder) / f"{name}.safetensors").read_bytes()
            for folder in ("stopped", "unbroken")
        )
        assert one == other


def test_a_second_ctrl_c_stops_at_once(faces, tmp_path):
    config = configured(faces)
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(StopAt(config, 6, step=9, action=twice), open_dataset(faces), config, tmp_path)
    assert latest_checkpoint(tmp_path).name == "step-00000007"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_under_nohup_outlives_its_terminal(faces, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = StopAt(configured(faces), 6, step=9, action=lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert fit(trainer, open_dataset(faces), configured(faces), tmp_path).step == 30
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_complete_run_is_left_alone(faces, tmp_path):
    config = configured(faces)
    run(config, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = run(config, tmp_path)
    assert again.rates == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_a_folder_holds_one_run(faces, tmp_path):
    config = configured(faces)
    run(config, tmp_path)
    other = dataclasses.replace(config, head=HeadConfig(scale=32.0))
    with pytest.raises(ValueError, match=r"another configuration \(head.scale: 64.0 -> 32.0\)"):
        run(other, tmp_path)
    run(dataclasses.replace(config, log_every=5), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: expected the settings of a run"):
        run(config, tmp_path)


def test_angles_are_logged_at_each_evaluation(faces, tmp_path):
    run(configured(faces, angle_images=20), tmp_path / "run")
    found = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "angles"]
    assert [r["step"] for r in found] == [10, 20, 30]
    assert [sum(r["correct"]["own"]) for r in found] == [20] * 3
    assert found[0]["correct"]["own"] != found[2]["correct"]["own"], "each with the weights of its step"


def test_angles_need_the_prototypes_alone(faces, tmp_path):
    """`state()` copies the whole model and, with several ranks, gathers its shards."""

    class Counting(NumpyTrainer):
        taken: list[int]

        def state(self):
            self.taken.append(self.steps)
            return super().state()

    config = configured(faces, angle_images=20, save_every=1000)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, evaluate_on=()))
    trainer = Counting(config, 6)
    trainer.taken = []
    fit(trainer, open_dataset(faces), config, tmp_path)
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl") if r["kind"] == "angles"] == [10, 20, 30]
    assert trainer.taken == [30], "for the checkpoint at the end"


@pytest.mark.parametrize("head", ["sface", "arcface"])
def test_a_negative_loss_is_explained_once(faces, tmp_path, capsys, head):
    run(configured(faces, head=HeadConfig(name=head)), tmp_path)
    assert capsys.readouterr().out.count("a negative loss is normal") == (head == "sface")


def test_only_rank_0_explains(faces, tmp_path, capsys):
    config = configured(faces)
    trainer = NumpyTrainer(config, 6)
    trainer.ranks = SimpleNamespace(rank=1, count=2, total=lambda number: 2 * number)
    fit(trainer, open_dataset(faces), config, tmp_path)
    assert capsys.readouterr().out == ""


def test_the_pull_is_as_the_explanation_says():
    """-r cos(theta) falls from a right angle down to somewhere above a, and is 0 well below a."""
    head = HeadConfig()
    theta = np.array([np.pi / 2, 1.4, 1.2, 1.0, 0.87, 0.8, 0.6])
    pull = -intra_weight(theta, head) * np.cos(theta)
    assert (np.diff(pull[:4]) < 0).all()
    assert (np.diff(pull[3:]) > 0).all()
    assert pull.max() < 1e-5
    assert pull[-1] > -1e-5
