"""The page that compares runs, and the command line for several of them."""

import json

import pytest

from common.evaluation.results import save_evaluation
from common.reports.comparison_page import write_comparison
from common.reports.run_report import main
from common.tests.reports.test_run_report import (
    Page,
    add_evaluations,
    evaluation,
    leave_out_figures,
    make_run,
    train_line,
    write_log,
)


@pytest.fixture
def without_figures(monkeypatch):
    leave_out_figures(monkeypatch)


@pytest.fixture
def runs(tmp_path):
    """One with two sets, one with lfw only and another seed."""
    folders = []
    for backend in ("pytorch", "mxnet"):
        (tmp_path / "runs" / backend).mkdir(parents=True)
        folders.append(make_run(tmp_path / "runs" / backend / "orl-seed0"))
    add_evaluations(folders[0])
    save_evaluation(folders[1] / "evaluation", evaluation("lfw", 0.4, seed=4), 90)
    config = json.loads((folders[1] / "config.json").read_text())
    (folders[1] / "config.json").write_text(json.dumps({**config, "seed": 4, "note": "x"}))
    write_log(folders[1], [train_line(step) for step in (5, 15)])
    return folders


def test_a_line_a_run_and_set(runs, tmp_path, without_figures):
    page = Page(write_comparison(runs, tmp_path / "out"))
    one, other = evaluation("lfw").result, evaluation("lfw", 0.4, seed=4).result
    head, *rows = page.rows[:5]
    assert head[:8] == ["run", "set", "step", "pairs", "folds", "accuracy ± std", "AUC", "EER"]
    assert [row[:2] for row in rows] == [
        ["pytorch/orl-seed0", "agedb_30"],
        ["mxnet/orl-seed0", "agedb_30"],
        ["pytorch/orl-seed0", "lfw"],
        ["mxnet/orl-seed0", "lfw"],
    ]
    assert rows[1][2:] == ["–"] * 9
    for row, step, result in ((rows[2], "100", one), (rows[3], "90", other)):
        accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.std:.2f} %"
        expected = [step, "60", "10", accuracy, f"{result.auc:.4f}", f"{100 * result.eer:.2f} %"]
        assert row[2:] == [*expected, *(f"{100 * result.tar[far]:.2f} %" for far in (0.1, 0.01, 0.001))]
    assert "raw pixels" not in page.text
    assert "different pairs under this name" not in page.text


def test_figures_show_every_run(runs, tmp_path):
    roc, det, training = Page(write_comparison(runs, tmp_path / "out")).figures()
    for run, one in (("pytorch", evaluation("lfw")), ("mxnet", evaluation("lfw", 0.4, seed=4))):
        assert f"<!-- {run}/orl-seed0: AUC {one.result.auc:.4f} -->" in roc
        assert f"<!-- {run}/orl-seed0: EER {100 * one.result.eer:.2f} % -->" in det
        assert f"<!-- {run}/orl-seed0 -->" in training
    assert "<!-- Accuracy on lfw -->" in training


def test_settings_that_differ(runs, tmp_path, without_figures):
    page = Page(write_comparison(runs, tmp_path / "out"))
    place = page.rows.index(["setting", "pytorch/orl-seed0", "mxnet/orl-seed0"])
    assert page.rows[place + 1 :] == [["seed", "3", "4"], ["note", "–", "x"]]
    page = Page(write_comparison([runs[0], make_run(tmp_path / "twin")], tmp_path / "out"))
    assert page.text.rstrip().endswith("None.")


def test_other_pairs_under_the_same_name_are_named(runs, tmp_path, without_figures):
    save_evaluation(runs[1] / "evaluation", evaluation("lfw", pairs=80), 90)
    page = Page(write_comparison(runs, tmp_path / "out"))
    assert "lfw: the runs were evaluated on different pairs under this name" in page.text


def test_runs_that_have_just_begun(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    page = Page(write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out"))
    assert "No run has an evaluation yet." in page.text
    assert page.text.count("Nothing to draw.") == 3


def test_an_unreadable_evaluation_is_named(runs, tmp_path, without_figures):
    (runs[0] / "evaluation" / "agedb_30.json").write_text("{")
    assert "pytorch/orl-seed0: " in Page(write_comparison(runs, tmp_path / "out")).text


def test_command_line(runs, tmp_path, capsys, without_figures):
    assert main([str(run) for run in runs]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        *(str(run / "report.html") for run in runs),
        str((tmp_path / "runs").resolve() / "comparison.html"),
    ]
    assert (tmp_path / "runs" / "comparison.md").read_text().startswith("# Comparison of 2 runs")
    assert main([*(str(run) for run in runs), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "comparison.html").is_file()
    assert main([str(runs[0]), str(runs[0])]) == 1
    assert "expected each run once, got it 2 times" in capsys.readouterr().err
    assert main([str(runs[0])]) == 0
    assert capsys.readouterr().out == f"{runs[0] / 'report.html'}\n"
