"""The benchmark runs, says what it measured, and names what it cannot run. What it measures is no test's business."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.__main__ import main
from common.config import DataConfig, ModelConfig, OptimiserConfig, RunConfig


def test_ratios_are_of_medians_to_the_first():
    slow, fast = speed.Measured("pytorch", 2.0, [10.0, 20.0, 90.0]), speed.Measured("jittor", 3.5, [50.0, 20.0, 30.0])
    lines = speed.markdown({"iresnet50": [slow, fast]}).splitlines()
    assert lines[2:] == [
        "| iresnet50 | pytorch | 20.0 (10.0, 90.0) | 1.00 | 2.0 s |",
        "| iresnet50 | jittor | 30.0 (20.0, 50.0) | 1.50 | 3.5 s |",
    ]


def tiny(case: str, device: str) -> tuple[RunConfig, int]:
    model = ModelConfig(backbone=case, embedding_size=8)
    data = DataConfig(root=Path("unused"), image_size=16)
    return RunConfig("tiny", data, model, optimiser=OptimiserConfig(batch_size=4), device=device), 5


def test_a_run_writes_what_it_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "case_config", tiny)
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    arguments = ["speed", "--backends", "pytorch", "--cases", "iresnet_small", "--turns", "2", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "speed.md").read_text()
    (row,) = json.loads((tmp_path / "speed.json").read_text())["details"]["results"]["iresnet_small"]
    assert row["backend"] == "pytorch"
    assert row["first_step"] > 0
    assert len(row["images_per_second"]) == 2
    assert min(row["images_per_second"]) > 0


def test_a_backend_that_cannot_run_is_named(monkeypatch):
    monkeypatch.setenv("SFACE_PYTHON_MXNET", "/bin/false")
    with pytest.raises(ValueError, match="mxnet: its process ended with 1"):
        speed.measure("mobilefacenet", ["mxnet"], 1, "cpu")


@pytest.mark.parametrize("arguments", [["speed", "--backends", "caffe"], ["speed", "--turns", "0"], ["sped"], []])
def test_wrong_options_are_named(arguments, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err


def test_the_recipe_is_measured_as_it_is():
    recipe, people = speed.case_config("lfw-small", "cpu")
    assert recipe == dataclasses.replace(speed.lfw_small(), device="cpu")
    assert people == 336
