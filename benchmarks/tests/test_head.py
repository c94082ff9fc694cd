"""The benchmark of the head runs and reports what it measured, and on which machine. No test depends on speed."""

import json

import numpy as np
import pytest

from benchmarks import results
from benchmarks.commands import main
from benchmarks.head import benchmark, figures, work
from benchmarks.head.inputs import INPUTS, active_share
from common.config import HeadConfig

SMALL = ["head", "--classes", "60", "--batch", "8", "--dim", "16", "--turns", "2"]


@pytest.mark.usefixtures("workers_here")
def test_a_run_writes_what_it_measured(tmp_path, capsys):
    assert main([*SMALL, "--inputs", "random", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (tmp_path / "head.md").read_text()
    found = json.loads((tmp_path / "head.json").read_text())
    assert found["machine"]["cpus"] >= 1
    (record,) = found["details"]
    assert results.read_charts(found["charts"])[0].bars[3].label == "streamed"
    assert (tmp_path / "head.svg").read_bytes().startswith(b"<?xml")
    assert list(record["seconds"]) == list(record["memory"]) == ["product", "softmax", "plain", "streamed"]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in record["seconds"].values())
    assert record["memory"]["plain"]["gradients"] == (60 + 8) * 16 * 4
    assert 0 < record["errors"]["streamed"] < 1e-4


@pytest.mark.usefixtures("workers_here")
def test_updates_are_measured_where_there_are_any(tmp_path):
    assert main([*SMALL, "--inputs", "random", "--forms", "update", "--out", str(tmp_path)]) == 0
    (record,) = json.loads((tmp_path / "head.json").read_text())["details"]
    assert min(record["seconds"]["update"]) > 0
    with pytest.raises(ValueError, match="partial-fc are PyTorch's alone, not jittor's"):
        benchmark.run(benchmark.Options(backend="jittor", forms=("dense",)))


def test_one_size_varies_at_a_time(monkeypatch):
    asked = []
    monkeypatch.setattr(benchmark, "ask", lambda _kind, case: asked.append(case) or {"seconds": {}, "errors": {}})
    options = benchmark.Options(classes=(40, 50), batch=(8, 9), dim=(4, 5), inputs=("random",), forms=(), turns=1)
    benchmark.measure(options)
    assert [(case["classes"], case["batch"], case["dim"]) for case in asked] == [
        (40, 8, 4),
        (50, 8, 4),
        (40, 9, 4),
        (40, 8, 5),
    ]


@pytest.mark.usefixtures("workers_here")
def test_small_problems_with_many_and_few_pushes(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "SMALL", [(8, 60, 16)])
    assert main(["head", "--small", "--turns", "1", "--forms", "plain", "streamed", "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "head.json").read_text())["details"]
    shares = [record["active_share"] for record in records]
    assert shares == pytest.approx([0, 0.05, 0.5, 1], abs=0.02)
    assert all(record["errors"]["streamed"] < 1e-4 for record in records)


def test_ratios_are_of_medians():
    record = {
        "classes": 85742,
        "batch": 256,
        "dim": 512,
        "inputs": "random",
        "active_share": 0.00012,
        "seconds": {"product": [0.2, 0.1, 0.3], "plain": [1.0, 4.0, 2.0], "streamed": [0.1, 0.1, 0.7]},
        "errors": {"plain": 0.0, "streamed": 2e-7},
        "memory": {"streamed": {"bytes": 3 * 2**20, "gradients": 2**20}},
    }
    assert benchmark.markdown([record]).splitlines()[2:] == [
        "| 85,742 | 256 | 512 | random | 0.0120% | product | 200 (100, 300) | 0.100 |  | 1.00 |  |  |",
        "| 85,742 | 256 | 512 | random | 0.0120% | plain | 2,000 (1,000, 4,000) | 1.00 |  | 10.0 |  |  |",
        "| 85,742 | 256 | 512 | random | 0.0120% | streamed | 100 (100, 700) | 0.0500 |  | 0.500 | 2 | 2.0e-07 |",
    ]


@pytest.mark.parametrize("kind", INPUTS)
def test_the_active_share_is_that_of_the_weights(kind):
    inputs = INPUTS[kind](900, 20, 64)
    x, w, labels = inputs
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=1, keepdims=True)).T
    weight = 1 / (1 + np.exp(80 * (np.arccos(cosines.astype(np.float64)) - 1.2)))
    weight[np.arange(20), labels] = 0
    share = (weight >= 1e-3).sum() / (20 * 899)
    assert share > 0.001
    assert active_share(inputs, HeadConfig(), 1e-3, block=128) == pytest.approx(share, rel=1e-2)


def test_clustered_inputs_look_trained():
    x, w, labels = INPUTS["clustered"](900, 50, 512)
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    own = np.degrees(np.arccos((x / np.linalg.norm(x, axis=1, keepdims=True) * unit[labels]).sum(1)))
    assert 25 < own.min() < own.max() < 37
    between = np.degrees(np.arccos(np.clip(unit @ unit.T, -1, 1)))
    near = between < 80
    assert near.mean() == pytest.approx(0.5, abs=0.1)  # 900 classes are two clusters
    assert between[near & (between > 1)].mean() == pytest.approx(69, abs=2)


def test_an_error_is_relative_to_the_largest_value():
    truth = [np.array([1.0, -4.0]), np.array([10.0])]
    assert work.gradient_error([np.array([1.0, -3.0]), np.array([10.5])], truth) == 0.25


def test_a_backend_that_cannot_run_is_named(monkeypatch, capsys):
    monkeypatch.setenv("SFACE_PYTHON_PYTORCH", "/bin/false")
    assert main(SMALL) == 2
    assert "pytorch: its process ended with 1" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--turns", "0"], ["--classes", "1"], ["--batch", "0"]])
def test_wrong_options_are_named(arguments, capsys):
    assert main(["head", *arguments]) == 2
    assert "expected at least 1 turn, sample and dimension, and 2 classes" in capsys.readouterr().err


def record(classes, batch, seconds):
    memory = {"streamed": {"bytes": 50 * 2**20, "gradients": 2**20}}
    case = {"classes": classes, "batch": batch, "dim": 8, "inputs": "random"}
    return {**case, "seconds": {"product": [seconds], "streamed": [seconds], "update": [0.1]}, "memory": memory}


def test_the_figure_has_a_panel_for_each_dimension_that_varies(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "svg", drawn.append)
    figures.growth([record(1000, 4, 0.5), record(4000, 4, 2.0), record(1000, 16, 3.0)])
    classes, batch, memory = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in classes.lines}
    assert lines["streamed"] == [[1000, 500], [4000, 2000]]
    assert lines["2 N C D operations"] == [[1000, 500], [4000, 2000]]
    assert lines["8 C D bytes"] == [[1000, 40], [4000, 160]]
    lines = {line.get_label(): line.get_xydata().tolist() for line in batch.lines}
    assert lines["2 N C D operations"] == [[4, 500], [16, 2000]]
    assert lines["8 C D bytes"] == [[4, 40], [16, 40]]
    assert memory.lines[0].get_xydata().tolist() == [[1000, 49], [4000, 49]]
