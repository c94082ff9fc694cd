"""The benchmarks of a step, of the loader and of verification run and report what they measured."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import loader, material, results, step, worker
from benchmarks.commands import main
from benchmarks.process import Spent, Worker, cpu_ratio, ratios
from common import config as configuration
from common.backend import BACKENDS
from common.config import DataConfig, HeadConfig, ModelConfig, OptimiserConfig, RunConfig
from common.datasets.images import decode_image
from common.datasets.pair_sets import open_pair_set
from common.datasets.training_sets import open_dataset
from common.recipes import lfw_small


def tiny(case: str, device: str) -> tuple[RunConfig, int]:
    model = ModelConfig(backbone=case, embedding_size=8)
    data = DataConfig(root=Path("unused"), image_size=16)
    return RunConfig("tiny", data, model, optimiser=OptimiserConfig(batch_size=4), device=device), 5


def test_ratios_are_of_turns_that_follow_each_other():
    fast, slow = [Spent(1, 2), Spent(2, 4), Spent(4, 4)], [Spent(2, 2), Spent(2, 8), Spent(1, 9)]
    assert ratios(fast, slow) == [2, 1, 0.25]
    assert cpu_ratio(fast, slow) == 2
    assert results.figure([3, 1, 2, 9]) == (2.5, 1, 9)


def test_numbers_keep_three_digits():
    assert [results.number(x) for x in (0, 0.01234, 0.9949, 1.05, 12.34, 123.4, 12345.6)] == [
        "0", "0.0123", "0.995", "1.05", "12.3", "123", "12,346",
    ]  # fmt: skip


def loop(kind, seconds, backend="pytorch", **facts):
    turns = [Spent(s, 2 * s) for s in seconds]
    return step.Loop("lfw-small", backend, kind, facts.pop("variant", ""), 60, turns, **facts)


def test_the_table_of_a_step():
    """Ratios to the bare loop are of turns in a row, ratios to the first trainer are of medians."""
    loops = [
        loop("bare", [0.9, 0.9, 0.9]),
        loop("training", [1.0, 2.0, 3.0], first_steps=[2.5], waits=["item", "item", "numpy"]),
        loop("training", [1.0, 1.0, 1.0], variant="bf16", first_steps=[2.0, 9.0, 4.0]),
        loop("bare", [0.5, 0.5, 0.5], backend="jittor"),
        loop("training", [0.5, 0.5, 1.0], backend="jittor", first_steps=[3.5]),
    ]
    lines = step.markdown(loops).splitlines()
    assert "| over pytorch | over the bare loop |" in lines[0]
    assert lines[2:] == [
        "| lfw-small | pytorch | 30.0 (20.0, 60.0) | 1.00 | 0.450 (0.300, 0.900) | 0.450 | 0.6 (item, numpy) | 2.5 s |",
        "| lfw-small | pytorch bf16 | 60.0 (60.0, 60.0) | 2.00 | 0.900 (0.900, 0.900) | 0.900 | 0 | 4.0 s |",
        "| lfw-small | jittor | 120 (60.0, 120) | 4.00 | 1.00 (0.500, 1.00) | 1.00 | 0 | 3.5 s |",
    ]
    assert [bar.label for bar in step.charts(loops)[1].bars] == ["pytorch", "pytorch bf16", "jittor"]


def test_variants_change_the_configuration():
    config, _ = tiny("iresnet_small", "cpu")
    assert step.variant_config(config, "") == config
    assert step.variant_config(config, "bf16") == dataclasses.replace(config, precision="bf16")
    with pytest.raises(ValueError, match="precision: .*'fp13'"):
        step.variant_config(config, "fp13")


@pytest.mark.usefixtures("workers_here")
def test_a_step_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(step, "case_config", tiny)
    monkeypatch.setattr(step, "SECONDS", 0.01)
    arguments = ["--backends", "pytorch", "--cases", "iresnet_small", "--turns", "3", "--starts", "2"]
    assert main(["step", *arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "step.md").read_text()
    written = json.loads((tmp_path / "step.json").read_text())
    bare, trainer = written["details"]
    assert (bare["kind"], trainer["kind"]) == ("bare", "training")
    assert len(trainer["turns"]) == len(bare["turns"]) == 3
    assert min(turn["seconds"] for turn in trainer["turns"]) > 0
    assert len(trainer["first_steps"]) == 2
    assert min(trainer["first_steps"]) > 0
    ratio, speed = results.read_charts(written["charts"])
    assert speed.bars[0].label == "pytorch"
    (bar,) = ratio.bars
    assert bar.target == step.TARGET
    assert bar.figure.lowest <= bar.figure.median <= bar.figure.highest
    assert {"processor", "cpus", "git"} <= written["machine"].keys()


def test_a_backend_that_cannot_run_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(step, "case_config", tiny)
    monkeypatch.setenv("SFACE_PYTHON_MXNET", "/bin/false")
    with pytest.raises(ValueError, match="mxnet: its process ended with 1"):
        step.measure("iresnet_small", ["mxnet"], step.Options(device="cpu"), tmp_path)


def test_the_recipe_is_measured_as_it_is():
    recipe, people = step.case_config("lfw-small", "cpu")
    assert recipe == dataclasses.replace(lfw_small(), device="cpu")
    assert people == 336


def test_waits_of_the_training_path_are_counted(tmp_path):
    """softmax on the CPU looks at the labels once a step, in PyTorch through nonzero; see the trainer's own tests."""
    config, classes = tiny("iresnet_small", "cpu")
    material.write_training_set(tmp_path, 16, classes, config.data.image_size)
    data = dataclasses.replace(config.data, root=tmp_path)
    config = dataclasses.replace(config, data=data, head=HeadConfig(name="softmax"))
    settings = {"config": configuration.to_json(config), "classes": classes}
    with Worker("pytorch", "training", settings) as training:
        assert training.ask(-3)["waits"] == ["nonzero"] * 3


@pytest.mark.usefixtures("workers_here")
def test_verification_is_measured(tmp_path, capsys):
    arguments = ["--backends", "pytorch", "--image-size", "16", "--pairs", "10", "--turns", "2", "--device", "cpu"]
    assert main(["verify", *arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "verify.md").read_text()
    (row,) = json.loads((tmp_path / "verify.json").read_text())["details"]["turns"]
    assert len(row["evaluation"]) == len(row["forward"]) == 2


def test_the_loader_is_measured_beside_those_of_pytorch_and_mxnet(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loader.memory, "keep_freed_memory", lambda: True)  # it would last for the other tests
    arguments = ["--images", "64", "--batch-size", "16", "--turns", "2", "--large", "1000"]
    assert main(["loader", *arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "loader.md").read_text()
    details = json.loads((tmp_path / "loader.json").read_text())["details"]
    assert {(one["backend"], one["name"]) for one in details["loaders"] if len(one["rates"]) == 2} == {
        *(("opencv", name) for name in ("loader", "decode")),
        *(("pytorch", name) for name in ("opencv", "arcface_torch")),
        ("mxnet", "ImageRecordIter"),
    }
    assert len(details["large"]["resident"]) == len(loader.MARKS)
    assert min(details["large"]["resident"]) > 10 * 2**20
    assert len(details["large"]["first_batch"]) == 2


def test_a_loader_that_is_not_installed_is_named(monkeypatch):
    def missing(module):
        raise ModuleNotFoundError(name=module)

    for package, requirement in worker.INSTALL.items():
        monkeypatch.setattr(importlib, "import_module", lambda _, package=package: missing(package))
        _, facts = worker.loader("pytorch", {})
        assert facts["missing"].startswith(f"{package} is not installed; install with pip install")
        assert requirement in facts["missing"]
    monkeypatch.setattr(importlib, "import_module", lambda _: missing("benchmarks.backends.pytorch.loaders"))
    with pytest.raises(ModuleNotFoundError):
        worker.loader("pytorch", {})
    ours, absent = loader.Measured("ours", "", "", rates=[8.0]), loader.Measured("theirs", "", "", missing="not there")
    table = loader.markdown([ours, absent], None, loader.Options())
    assert "not measured: theirs: not there" in table
    assert "| theirs" not in table
    assert loader.charts([ours, absent], None)[0].bars == []


def test_a_dataloader_drops_an_incomplete_batch(tmp_path):
    material.write_training_set(tmp_path, 20, 5, 16)
    settings = {"name": "arcface_torch", "root": str(tmp_path), "size": 16, "batch_size": 8, "workers": 1}
    with Worker("pytorch", "loader", settings) as dataloader:
        assert dataloader.ask(2)["images"] == 2 * 16


def test_a_dataloader_prepares_rgb_planes_in_the_usual_range():
    from benchmarks.backends.pytorch.loaders import _floats, _planes  # not before a test needs PyTorch

    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255  # OpenCV's order is BGR
    for planes, low, high in ((_planes(red), 0, 255), (_floats(red), -1, 1)):
        assert planes.amin((1, 2)).tolist() == planes.amax((1, 2)).tolist() == [high, low, low]


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_adapters_prepare_their_framework(backend):
    """MXNet and Jittor need settings before they are imported; a worker imports an adapter first."""
    folder = Path(loader.__file__).parent / "backends" / backend
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    assert "bare" in names
    code = f"import importlib\nfor name in {names}: importlib.import_module('benchmarks.backends.{backend}.' + name)"
    subprocess.run([sys.executable, "-c", code], check=True)


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
