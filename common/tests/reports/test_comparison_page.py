"""The page that compares runs, which need not be of one recipe: what it shows, and that the runs stay as they are."""

import json

import pytest

from common.__main__ import main
from common.evaluation.results import figures, save_evaluation
from common.reports.comparison import write_comparison
from common.tests.reports.made_runs import (
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
def others(tmp_path):
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


def test_a_line_a_run_and_set(others, tmp_path, without_figures):
    page = Page(write_comparison(others, tmp_path / "out"))
    head, *rows = page.rows[:5]
    assert head[:6] == ["run", "set", "step", "pairs", "folds", "accuracy ± std"]
    assert [row[:2] for row in rows] == [
        ["pytorch/orl-seed0", "agedb_30"],
        ["mxnet/orl-seed0", "agedb_30"],
        ["pytorch/orl-seed0", "lfw"],
        ["mxnet/orl-seed0", "lfw"],
    ]
    assert rows[1][2:] == ["–", "missing", *["–"] * 8]
    for row, step, one in (
        (rows[2], "100", evaluation("lfw")),
        (rows[3], "90", evaluation("lfw", 0.4, seed=4)),
    ):
        assert row[2:] == [step, *(figures(one)[name] for name in head[3:])]
    assert "raw pixels" not in page.text
    assert "different pairs under this name" not in page.text


def test_figures_show_every_run(others, tmp_path):
    figures = Page(write_comparison(others, tmp_path / "out")).figures()
    assert len(figures) == 6
    roc, det, training = figures[2], figures[3], "".join(figures[4:])
    for run, one in (("pytorch", evaluation("lfw")), ("mxnet", evaluation("lfw", 0.4, seed=4))):
        assert f"<!-- {run}/orl-seed0: AUC {one.result.auc:.4f} -->" in roc
        assert f"<!-- {run}/orl-seed0: EER {100 * one.result.eer:.2f} % -->" in det
        assert f"<!-- {run}/orl-seed0 -->" in training
    assert "<!-- ROC on lfw -->" in roc
    assert "<!-- Accuracy on lfw -->" in training


def test_settings_that_differ(others, tmp_path, without_figures):
    page = Page(write_comparison(others, tmp_path / "out"))
    place = page.rows.index(["setting", "pytorch/orl-seed0", "mxnet/orl-seed0"])
    assert page.rows[place + 1 :] == [["seed", "3", "4"], ["note", "–", "x"]]
    assert "not comparable" not in page.text
    page = Page(write_comparison([others[0], make_run(tmp_path / "twin")], tmp_path / "out"))
    assert page.text.rstrip().endswith("Settings that differ\nNone.\nEnvironments that differ\nNone.")


def test_other_threads_and_machines_are_named(others, tmp_path, without_figures):
    for folder, threads, machine in zip(others, (1, 16), ("Linux-a", "Linux-b"), strict=True):
        backend = {"name": "pytorch", "threads": threads, "device": "cpu"}
        environment = {"time": str(threads), "command": [machine], "machine": machine, "backend": backend}
        (folder / "environment.json").write_text(json.dumps(environment))
    page = Page(write_comparison(others, tmp_path / "out"))
    differing = (
        "The runs differ in machine (Linux-a, Linux-b); threads (1, 16): their times and speeds are not comparable."
    )
    assert differing in page.text
    rows = [["setting", "pytorch/orl-seed0", "mxnet/orl-seed0"], ["machine", "Linux-a", "Linux-b"]]
    assert page.rows[-3:] == [*rows, ["backend.threads", "1", "16"]]


def test_the_runs_stay_as_they_are(others, tmp_path, capsys, without_figures):
    def state():
        files = sorted(path for run in others for path in [run, *run.rglob("*")])
        return [(path, path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in files]

    before = state()
    assert main(["report", *map(str, others)]) == 0
    assert state() == before
    for out in (others[1], others[1] / "evaluation" / "new"):
        assert main(["report", *map(str, others), "--out", str(out)]) == 2
        assert f"{out}: expected a folder outside the runs that are compared" in capsys.readouterr().err
    assert state() == before


def test_other_pairs_under_the_same_name_are_named(others, tmp_path, without_figures):
    save_evaluation(others[1] / "evaluation", evaluation("lfw", pairs=80), 90)
    page = Page(write_comparison(others, tmp_path / "out"))
    assert "lfw: the runs were evaluated on different pairs under this name" in page.text


def test_runs_that_have_just_begun(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    page = Page(write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out"))
    assert "No run has an evaluation yet." in page.text
    assert page.text.count("Nothing to draw.") == 2


def test_an_unreadable_evaluation_is_named(others, tmp_path, without_figures):
    (others[0] / "evaluation" / "agedb_30.json").write_text("{")
    assert "pytorch/orl-seed0: " in Page(write_comparison(others, tmp_path / "out")).text


def test_report_of_several_runs(others, tmp_path, capsys, without_figures):
    assert main(["report", *map(str, others)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str((tmp_path / "runs").resolve() / "comparison.html")]
    assert (tmp_path / "runs" / "comparison.md").read_text().startswith("# Comparison of 2 runs")
    assert main(["report", *map(str, others), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "comparison.html").is_file()
    assert main(["report", str(others[0]), str(others[0])]) == 2
    assert "expected each run once, got it 2 times" in capsys.readouterr().err
    assert main(["report", str(others[0])]) == 0
    assert capsys.readouterr().out == f"{others[0] / 'report.html'}\n"


def test_a_negative_loss_is_explained(others, tmp_path, without_figures):
    assert "a negative loss is normal" in Page(write_comparison(others, tmp_path / "out")).text
    for run in others:
        (run / "config.json").write_text(json.dumps({"head": {"name": "arcface"}}))
    assert "a negative loss is normal" not in Page(write_comparison(others, tmp_path / "out")).text
