"""The benchmarks of a step, of the loader and of verification run, and say what they measured."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import loader, material, results, step
from benchmarks.__main__ import main
from benchmarks.process import Spent, Worker, cpu_ratio, ratios
from benchmarks.tests.test_speed import tiny
from common import config as configuration
from common.config import HeadConfig
from common.datasets.images import decode_image
from common.datasets.pair_sets import open_pair_set
from common.datasets.training_sets import open_dataset


def test_ratios_are_of_turns_that_follow_each_other():
    fast, slow = [Spent(1, 2), Spent(2, 4), Spent(4, 4)], [Spent(2, 2), Spent(2, 8), Spent(1, 9)]
    assert ratios(fast, slow) == [2, 1, 0.25]
    assert cpu_ratio(fast, slow) == 2
    assert results.figure([3, 1, 2, 9]) == (2.5, 1, 9)


def test_numbers_keep_three_digits():
    assert [results.number(x) for x in (0, 0.01234, 0.9949, 1.05, 12.34, 123.4, 12345.6)] == [
        "0", "0.0123", "0.995", "1.05", "12.3", "123", "12,346",
    ]  # fmt: skip


def test_the_table_of_a_step():
    turns, base = [Spent(1.0, 2.0)] * 2, [Spent(0.9, 1.9)] * 2
    measured = step.Measured("lfw-small", "pytorch", "bf16", 64, turns, base, ["item", "item", "numpy"])
    assert step.markdown([measured]).splitlines()[2] == (
        "| lfw-small | pytorch bf16 | 64.0 (64.0, 64.0) | 0.900 (0.900, 0.900) | 0.950 | 0.6 (item, numpy) |"
    )


def test_variants_change_the_configuration():
    config, _ = tiny("iresnet_small", "cpu")
    assert step.variant_config(config, "") == config
    assert step.variant_config(config, "bf16") == dataclasses.replace(config, precision="bf16")
    with pytest.raises(ValueError, match="precision: .*'fp13'"):
        step.variant_config(config, "fp13")


def test_a_step_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(step, "case_config", tiny)
    monkeypatch.setattr(step, "SECONDS", 0.01)
    arguments = ["--backends", "pytorch", "--cases", "iresnet_small", "--turns", "3", "--starts", "2"]
    assert main(["step", *arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "step.md").read_text()
    written = json.loads((tmp_path / "step.json").read_text())
    (row,) = written["details"]
    assert len(row["trainer"]) == len(row["bare"]) == 3
    assert min(turn["seconds"] for turn in row["trainer"]) > 0
    (chart,) = results.read_charts(written["charts"])
    (bar,) = chart.bars
    assert bar.target == step.TARGET
    assert bar.figure.lowest <= bar.figure.median <= bar.figure.highest
    assert {"processor", "cpus", "git"} <= written["machine"].keys()


def test_waits_of_the_training_path_are_counted(tmp_path):
    """softmax on the CPU looks at the labels once a step, in PyTorch through nonzero; see the trainer's own tests."""
    config, classes = tiny("iresnet_small", "cpu")
    material.write_training_set(tmp_path, 16, classes, config.data.image_size)
    data = dataclasses.replace(config.data, root=tmp_path)
    config = dataclasses.replace(config, data=data, head=HeadConfig(name="softmax"))
    worker = Worker("pytorch", "training", {"config": configuration.to_json(config), "classes": classes})
    try:
        assert worker.ask(-3)["waits"] == ["nonzero"] * 3
    finally:
        worker.close()


def test_verification_is_measured(tmp_path, capsys):
    arguments = ["--backends", "pytorch", "--image-size", "16", "--pairs", "10", "--turns", "2", "--device", "cpu"]
    assert main(["verify", *arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "verify.md").read_text()
    (row,) = json.loads((tmp_path / "verify.json").read_text())["details"]["turns"]
    assert len(row["evaluation"]) == len(row["forward"]) == 2


def test_the_loader_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loader.memory, "keep_freed_memory", lambda: True)  # it would last for the other tests
    arguments = ["--images", "64", "--batch-size", "16", "--turns", "2", "--large", "1000"]
    assert main(["loader", *arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "loader.md").read_text()
    details = json.loads((tmp_path / "loader.json").read_text())["details"]
    assert {len(turns) for turns in details["turns"].values()} == {2}
    assert details["turns"].keys() == {"loader", "decode", "decode_to_batch"}
    assert len(details["large"]["resident"]) == len(loader.MARKS)
    assert min(details["large"]["resident"]) > 10 * 2**20
    assert len(details["large"]["first_batch"]) == 2


def test_generated_sets_are_what_they_say(tmp_path):
    material.write_training_set(tmp_path, 600, 7, 16)
    dataset = open_dataset(tmp_path)
    assert (len(dataset), dataset.num_classes) == (600, 7)
    assert {dataset.sample(i).label for i in range(600)} == set(range(7))
    material.write_pairs(tmp_path / "pairs.bin", 300, 16)
    pairs = open_pair_set(tmp_path / "pairs.bin")
    encoded = {pairs.encoded(i) for i in range(600)}
    assert len(encoded) == 600, "an evaluation embeds equal files once"
    assert pairs.issame.sum() == 150
    assert decode_image(pairs.encoded(599), "last", 16).std() > 1
    sizes = [len(file) for file in material.jpegs(8, 112)]
    assert 4_000 < np.mean(sizes) < 9_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--backends", "caffe"], "backends: expected some of pytorch, mxnet, jittor, got 'caffe'"),
        (["step", "--turns", "0"], "turns: expected at least 1"),
        (["step", "--turns", "2", "--starts", "3"], "no more starts, got 2, 3"),
        (["verify", "--pairs", "9"], "at least 10 pairs"),
        (["loader", "--images", "10"], "a batch of images"),
        (["loader", "--large", "10"], "large: expected 0 or at least 1000"),
        (["all", "--out", "unused", "--only", "nothing"], "only: expected some of"),
    ],
)
def test_wrong_options_are_named(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
