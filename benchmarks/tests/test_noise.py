"""The noise study: its runs, how it resumes, and its tables."""

import dataclasses
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.commands import main
from benchmarks.noise import figures, study
from benchmarks.noise.study import METHODS, TEST, VALIDATION, Case, cases, locked, run_config
from benchmarks.process import worker_command
from common import config as configuration
from common.recipes import lfw_small
from data.synthetic import make_synthetic


def test_the_runs_of_each_part():
    heads = cases("heads", "pytorch", (0, 1))
    assert {(c.method, c.share, c.seed) for c in heads} == {
        (m, s, i) for m in METHODS for s in (0, 20, 40) for i in (0, 1)
    }
    assert {c.tested_on for c in heads} == {TEST}
    for backend in ("mxnet", "jittor"):
        few = cases("heads", backend, (0,))
        assert [(c.method, c.share) for c in few] == [("sface", 0), ("arcface", 0), ("sface", 20), ("arcface", 20)]
        assert cases("scan", backend, (0,)) == []
    scan = cases("scan", "pytorch", (0,))
    assert {c.tested_on for c in scan} == {VALIDATION}, "settings are never chosen on the test set"
    grid = {(c.head.intra_center, c.head.inter_center, c.share) for c in scan if c.head.name == "sface"}
    assert len(grid) == 3 * 4 * 2
    assert len({(c.head.name, c.head.scale, c.share) for c in scan if c.head.name != "sface"}) == 3 * 4 * 2
    both = cases("all", "pytorch", (0, 1))
    assert both == heads + scan
    assert len({c.key for c in both}) == len(both)


def test_a_case_is_the_recipe_with_its_head_data_and_seed():
    options = study.Options(out=Path("out"), device="cpu")
    case = Case("pytorch", "arcface", METHODS["arcface"], 20, 1, TEST)
    config, recipe = run_config(case, options), lfw_small()
    assert config.data.root == Path("out/data/wrong-20-seed1")
    assert (config.head, config.seed, config.data.evaluate_on) == (METHODS["arcface"], 1, (TEST,))
    data = dataclasses.replace(recipe.data, root=config.data.root, evaluate_on=(TEST,), raw_pixels=False)
    assert config == dataclasses.replace(recipe, data=data, head=config.head, seed=1, device="cpu", out=config.out)
    assert METHODS["sface"] == recipe.head


@pytest.fixture
def small_study(tmp_path, monkeypatch):
    """One case of a few steps on generated faces; returns the command's arguments."""
    source = make_synthetic(tmp_path / "faces", classes=5, images=8, size=16, pairs=20)
    (source / "synthetic.bin").rename(source / f"{TEST}.bin")
    chosen = [Case("pytorch", "sface", METHODS["sface"], 40, 0, TEST)]

    def small(case: Case, options: study.Options) -> configuration.RunConfig:
        config = run_config(case, options)
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, image_size=16, workers=1),
            model=dataclasses.replace(config.model, embedding_size=8),
            optimiser=dataclasses.replace(config.optimiser, batch_size=8, max_steps=20, learning_rate=0.01),
            save_every=2,
            evaluate_every=10,
            angle_images=30,
        )

    monkeypatch.setattr(study, "cases", lambda *_: chosen)
    monkeypatch.setattr(study, "run_config", small)
    return ["noise", "--data", str(source), "--out", str(tmp_path / "out"), "--device", "cpu", "--jobs", "2"]


def results(out: Path) -> list[dict]:
    measured = ("seconds", "git")  # these differ
    return [{name: r[name] for name in r if name not in measured} for r in study.read_results(out)]


def test_a_killed_run_goes_on_and_finished_ones_stay(small_study, tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert main([*small_study[:4], str(whole), *small_study[5:]]) == 0
    assert "1 runs, 0 done" in capsys.readouterr().out

    options = study.Options(data=Path(small_study[2]), out=out, device="cpu")
    case = study.cases()[0]
    study.prepare([case], options)
    settings = {"config": configuration.to_json(study.run_config(case, options))}
    process = subprocess.Popen(worker_command("pytorch", "run", settings))
    folder = out / "runs" / case.key / "checkpoints"
    while not list(folder.glob("step-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(folder.glob("step-00000020")), "killed on its way"

    assert main(small_study) == 0
    printed = capsys.readouterr().out
    assert "1 runs, 0 done" in printed
    assert results(out) == results(whole)
    (first,) = results(out)
    assert sum(first["angles"][-1]["wrong"]["own"]) > 0
    assert {path.name for path in out.glob("noise*")} >= {
        "noise.json",
        "noise.md",
        "noise_accuracy.png",
        "noise_angles.png",
    }

    monkeypatch.setattr(study, "train", None)  # nothing is left to train
    assert main(small_study) == 0
    assert "1 runs, 1 done" in capsys.readouterr().out


def test_a_run_that_fails_is_named_and_leaves_no_result(small_study, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SFACE_PYTHON_PYTORCH", "/bin/false")
    assert main(small_study) == 2
    assert "pytorch-sface-40-0-lfw_view2_folds01: training ended with 1" in capsys.readouterr().err
    assert study.read_results(tmp_path / "out") == []


def test_one_study_at_a_time_even_when_its_command_was_killed(tmp_path):
    with locked(tmp_path) as lock:
        run = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
        with pytest.raises(ValueError, match="is at work there"), locked(tmp_path):
            pass
    with pytest.raises(ValueError, match="is at work there"), locked(tmp_path):
        pass
    run.kill()
    run.wait()
    with locked(tmp_path):
        pass


def found(method: str, share: int, accuracy: float, tested_on: str = TEST, **head: float) -> dict:
    base = {"name": "sface", "intra_center": 0.8, "inter_center": 1.1}
    return {
        "backend": "pytorch", "method": method, "share": share, "accuracy": accuracy, "tested_on": tested_on,
        "head": base | head, "angles": [],
    }  # fmt: skip


def test_tables():
    test_set = [found("sface", 0, 0.8), found("sface", 0, 0.9), found("arcface", 20, 0.75)]
    scan = [found("sface a 0.80", 40, 0.7, VALIDATION), found("sface a 0.80", 0, 0.6, VALIDATION)]
    assert figures.table(test_set + scan).splitlines()[2:] == [
        "| pytorch | sface | 85.00 (80.00, 90.00; 2) |  |",
        "| pytorch | arcface |  | 75.00 |",
    ]
    assert figures.scan_table(test_set + scan).splitlines()[2:] == ["| sface a 0.80 | 60.00 | 70.00 |"]


def test_the_heat_map_puts_each_setting_in_its_place():
    scan = [
        found(f"{a} {b}", 40, a + b / 10, VALIDATION, intra_center=a, inter_center=b) for a in (1, 2) for b in (3, 4, 5)
    ]
    figure = figures.settings_figure(scan)
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == pytest.approx(np.array([[130, 140, 150], [230, 240, 250]]))
    assert figures.settings_figure(scan[:3]) is None
    assert figures.accuracy_figure(scan) is None


def test_without_results_there_is_nothing_to_draw(tmp_path, capsys):
    assert main(["noise", "--part", "none", "--out", str(tmp_path)]) == 0
    assert "no results" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x.json: expected the result of a case, .*; delete it"):
        study.read_results(tmp_path)
