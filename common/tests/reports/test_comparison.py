"""Made-up runs side by side: the table by backend and seed, its figure, and the page, against numbers by hand."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from functools import partial

import numpy as np
import pytest
from matplotlib.colors import to_hex

from common.config import to_json
from common.evaluation.evaluate import Evaluation
from common.evaluation.results import save_evaluation
from common.evaluation.verification import verify_distances
from common.recipes import lfw_small
from common.reports import plots
from common.reports.comparison import write_comparison
from common.tests.reports.made_runs import (
    Page,
    command,
    leave_out_figures,
    printed_by,
    refused,
    train_line,
    write_log,
)

PAIRS, EPOCHS, STEPS = 100, 4, 40
ENDING = f"lfw-small, {PAIRS} pairs of lfw"


def evaluation(wrong, name="lfw"):
    """100 pairs, of which `wrong` different ones look the same: accuracy 1 - wrong / 100 in ten folds of ten."""
    issame = np.arange(PAIRS) % 2 == 0
    distances = np.where(issame, 0.5, 1.5)
    distances[1 : 20 * wrong : 20] = 0.5
    return Evaluation(name, verify_distances(distances, issame), 20.0)


def make_run(folder, backend="pytorch", seed=0, wrong=10, seconds=100.0, speed=50.0, loss=0.0, raw=4, **changes):
    """A finished run of four epochs of ten steps, whose loss is `loss` + step; `wrong` and `raw` of 0 to 5 pairs."""
    folder.mkdir(parents=True)
    config = lfw_small()
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, epochs=EPOCHS), seed=seed)
    (folder / "config.json").write_text(json.dumps({**to_json(config), **changes}))
    (folder / "environment.json").write_text(json.dumps({"backend": {"name": backend, "threads": 1}}))
    write_log(folder, lines(STEPS, seconds, speed, loss))
    save_evaluation(folder / "evaluation", evaluation(wrong), STEPS)
    if raw is not None:
        save_evaluation(folder / "evaluation", evaluation(raw), 0, method="raw_pixels")
    return folder


def lines(steps, seconds=100.0, speed=50.0, loss=0.0):
    """A line a step; the first is slow, as the first step of a run is."""
    found = []
    for step in range(1, steps + 1):
        here = {"images_per_second": speed / 10 if step == 1 else speed, "seconds": seconds * step / steps}
        found.append(train_line(step, epoch=step / 10, loss=loss + step, **here))
    return found


@pytest.fixture
def runs(tmp_path):
    """PyTorch with seeds 0, 1 and 2, Jittor with 0 and 2."""
    return [
        make_run(tmp_path / "pytorch-0", wrong=1, seconds=100.4),
        make_run(tmp_path / "pytorch-1", seed=1, wrong=2, seconds=1300, speed=60, loss=100),
        make_run(tmp_path / "pytorch-2", seed=2, wrong=3, seconds=110, speed=70, loss=200),
        make_run(tmp_path / "jittor-2", "jittor", seed=2, wrong=5, speed=80, raw=None),
        make_run(tmp_path / "jittor-0", "jittor", wrong=2, speed=80, raw=None),
    ]


compare, rejected = partial(command, "compare"), partial(refused, "compare")


# ---- the table ----


def test_table(runs, capsys):
    assert compare(capsys, *runs) == (
        0,
        "| backend | seed 0 | seed 1 | seed 2 | mean | std, points | raw pixels | training, s | images/s |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        # 99, 98 and 97 %: mean 98, deviations 1, 0 and 1, so the root of 2/3
        "| pytorch | 99.00 % | 98.00 % | 97.00 % | 98.00 % | 0.82 | 96.00 % | 100 to 1,300 | 60 |\n"
        # 98 and 95 %: mean 96.5, both 1.5 away
        "| jittor | 98.00 % |  | 95.00 % | 96.50 % | 1.50 |  | 100 | 80 |\n"
        "\n"
        f"{ENDING}; largest difference between two means: 1.50 points (pytorch, jittor); not over the same seeds\n",
        "",
    )


def test_one_run(tmp_path, capsys):
    status, out, _ = compare(capsys, make_run(tmp_path / "run", wrong=1))
    assert status == 0
    assert out.splitlines()[2:] == ["| pytorch | 99.00 % | 99.00 % |  | 96.00 % | 100 | 50 |", "", ENDING]


def test_the_two_backends_that_are_farthest_apart_are_named(tmp_path, capsys):
    runs = [make_run(tmp_path / name, name, wrong=wrong) for name, wrong in (("b", 3), ("c", 1), ("a", 5), ("d", 2))]
    out = compare(capsys, *runs)[1]
    assert [row.split()[1] for row in out.splitlines()[2:6]] == ["b", "c", "a", "d"]
    assert out.splitlines()[-1] == f"{ENDING}; largest difference between two means: 4.00 points (c, a)"


def test_seeds_are_in_the_order_of_numbers(tmp_path, capsys):
    runs = [make_run(tmp_path / str(seed), seed=seed, wrong=wrong) for seed, wrong in ((10, 1), (9, 2))]
    out = compare(capsys, *runs, make_run(tmp_path / "jittor", "jittor", seed=8, wrong=3))[1]
    assert "| backend | seed 8 | seed 9 | seed 10 | mean |" in out
    assert "| pytorch |  | 98.00 % | 99.00 % | 98.50 % | 0.50 |" in out
    assert "| jittor | 97.00 % |  |  | 97.00 % |  |" in out


def test_of_several_sets_one_is_chosen(runs, capsys):
    for run in runs:
        save_evaluation(run / "evaluation", evaluation(0, "cfp"), STEPS)
    save_evaluation(runs[0] / "evaluation", evaluation(5, "cfp"), 0, method="raw_pixels")
    assert "one evaluation set, or its name with --set; they have cfp, lfw" in rejected(capsys, *runs)
    status, out, _ = compare(capsys, *runs, "--set", "cfp")
    assert status == 0
    assert "| pytorch | 100.00 % | 100.00 % | 100.00 % | 100.00 % | 0.00 | 95.00 % |" in out
    assert "100 pairs of cfp; largest difference between two means: 0.00 points" in out
    assert "96.00 %" in compare(capsys, *runs, "--set", "lfw")[1]  # raw pixels on the set that was asked for


def test_a_run_that_was_cut_by_steps_is_finished(tmp_path, capsys):
    run = make_run(tmp_path / "run", optimiser={**to_json(lfw_small())["optimiser"], "max_steps": STEPS})
    assert compare(capsys, run)[0] == 0  # at epoch 4 of 16


def test_settings_that_do_not_matter_may_differ(tmp_path, capsys):
    one = make_run(tmp_path / "one")
    other = make_run(tmp_path / "two", "jittor", device="cuda:1", out="elsewhere", log_every=1)
    assert compare(capsys, one, other)[0] == 0


# ---- what cannot be compared ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "orl-demo"}, "name: 'lfw-small' -> 'orl-demo'"),
        ({"precision": "fp64"}, "precision: 'fp32' -> 'fp64'"),
        ({"head": {**to_json(lfw_small())["head"], "intra_center": 0.9}}, "head.intra_center: 0.8 -> 0.9"),
    ],
)
def test_other_settings(tmp_path, capsys, changes, message):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", "jittor", seed=1, **changes)]
    assert rejected(capsys, *runs) == f"error: {runs[0]} and {runs[1]} differ in {message}\n"


def test_other_data(runs, capsys):
    result = verify_distances(np.linspace(0, 1, PAIRS), np.arange(PAIRS) < 50)
    save_evaluation(runs[3] / "evaluation", Evaluation("lfw", result, 1.0), STEPS)
    assert f"{runs[3]} differ in pairs of the set" in rejected(capsys, *runs)


def test_other_sets(tmp_path, capsys):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", "jittor")]
    (runs[1] / "evaluation" / "lfw.json").unlink()
    save_evaluation(runs[1] / "evaluation", evaluation(0, "cfp"), STEPS)
    assert "one evaluation set, or its name with --set; they have cfp, lfw" in rejected(capsys, *runs)
    assert f"{runs[1]}: expected an evaluation on lfw; it has cfp" in rejected(capsys, *runs, "--set", "lfw")


def test_a_training_set_of_another_size(runs, capsys):
    write_log(runs[1], [line | {"epoch": line["step"] / 5} for line in lines(20)])
    save_evaluation(runs[1] / "evaluation", evaluation(1), 20)
    assert f"{runs[1]} differ in size of the training set, by the last step" in rejected(capsys, *runs)


def test_the_same_run_twice(runs, capsys):
    twin = make_run(runs[0].parent / "twin", seed=2)
    assert f"{runs[2]} and {twin} are both pytorch with seed 2" in rejected(capsys, *runs, twin)


def test_an_unfinished_run(runs, capsys):
    write_log(runs[1], lines(39))
    assert f"{runs[1]}: expected a finished run, its log ends at epoch 3.90 of 4" in rejected(capsys, *runs)
    write_log(runs[1], [])
    assert "ends at epoch 0.00 of 4" in rejected(capsys, *runs)


def test_a_run_without_its_last_evaluation(runs, capsys):
    save_evaluation(runs[1] / "evaluation", evaluation(1), 30)
    assert f"{runs[1]}: training ended at step 40, lfw was evaluated at step 30" in rejected(capsys, *runs)
    (runs[1] / "evaluation" / "lfw.json").unlink()  # the baseline stays, and is no evaluation of the run
    assert f"{runs[1]}: expected an evaluation on lfw; it has none" in rejected(capsys, *runs)
    assert "or its name with --set; they have none" in rejected(capsys, runs[1])


def test_not_a_run_folder(runs, capsys):
    nowhere = runs[0].parent / "nowhere"
    assert f"{nowhere}: expected a run folder, found none" in rejected(capsys, *runs, nowhere)
    assert f"{runs[0].parent}: expected a run folder, found no config.json in it" in rejected(capsys, runs[0].parent)
    assert "expected a run folder" in rejected(capsys, runs[0] / "config.json")
    (runs[0] / "log.jsonl").unlink()
    assert "log.jsonl" in rejected(capsys, *runs)
    assert "expected run folders" in rejected(capsys)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "expected the settings of a run"),
        ("config.json", '{"name": "a"}', "expected the settings of a run (data: missing)"),
        ("config.json", "[1]", "expected the settings of a run, a JSON object, got list"),
        ("environment.json", '{"backend": {}}', "expected the name of a backend in backend.name, got None"),
        ("environment.json", '{"backend": []}', "expected the name of a backend in backend.name, got None"),
        (
            "environment.json",
            '{"backend": {"name": "a | b"}}',
            "expected the name of a backend in backend.name, got 'a | b'",
        ),
        ("environment.json", '{"backend": {"name": 3}}', "expected the name of a backend in backend.name, got 3"),
        ("log.jsonl", '{"kind": "train", "step": 40, "epoch": 4, "loss": 1}\n', "KeyError('images_per_second')"),
        ("log.jsonl", json.dumps(train_line(40, seconds=1, loss=float("nan"))) + "\n", "expected numbers step"),
        ("log.jsonl", json.dumps(train_line(40, seconds=1, loss=10**400)) + "\n", "OverflowError"),
        ("log.jsonl", json.dumps(train_line(2**60, epoch=4, seconds=1)) + "\n", "expected steps from 0 to 2^53"),
        ("log.jsonl", json.dumps(train_line(-1, seconds=1)) + "\n", "expected steps from 0 to 2^53, got -1"),
        ("evaluation/lfw.json", "{", "expected an evaluation written by save_evaluation"),
    ],
)
def test_damaged_files_are_named(runs, capsys, name, content, message):
    (runs[0] / name).write_text(content)
    error = rejected(capsys, *runs)
    assert str(runs[0] / name) in error
    assert message in error


# ---- the figure ----


def test_png(runs, tmp_path, capsys):
    table = compare(capsys, *runs)
    assert compare(capsys, *runs, "--figure", tmp_path / "new" / "figure.PNG") == table
    (figure,) = (tmp_path / "new").iterdir()  # no temporary file is left
    content = figure.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000
    compare(capsys, *runs, "--figure", figure)
    assert figure.read_bytes() == content


def test_svg(runs, tmp_path, capsys):
    figure = tmp_path / "figure.svg"
    assert compare(capsys, *runs, "--figure", figure)[0] == 0
    text = figure.read_text("utf-8")
    assert ElementTree.fromstring(text).tag.endswith("svg")
    labels = ("Training loss", "optimiser step", "Verification accuracy", "pytorch", "jittor", "raw pixels 96.00 %")
    for label in labels:
        assert f"<!-- {label} -->" in text
    compare(capsys, *runs, "--figure", figure)
    assert figure.read_text("utf-8") == text


def test_other_kinds_of_file(runs, tmp_path, capsys):
    assert "with --figure a file .png or .svg" in rejected(capsys, *runs, "--figure", tmp_path / "figure.pdf")
    assert "with --figure a file .png or .svg" in rejected(capsys, *runs, "--figure", tmp_path / "figure")


def test_what_is_drawn(runs, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_bytes", lambda figure, form: drawn.append(figure) or b"")
    compare(capsys, *runs, "--figure", tmp_path / "figure.svg")
    losses, accuracies = drawn[0].axes

    thin = [line for line in losses.lines if line.get_linewidth() < 1]
    thick = [line for line in losses.lines if line.get_linewidth() > 1]
    # Loss rises by one a step, from 0, 100 and 200: so does its running mean, away from the ends.
    assert [line.get_ydata()[20] for line in thin] == pytest.approx([21, 121, 221, 21, 21])
    assert [line.get_ydata()[20] for line in thick] == pytest.approx([121, 21])
    assert [line.get_xdata()[20] for line in losses.lines] == [21] * 7
    assert [line.get_label() for line in thick] == ["pytorch", "jittor"]
    colours = [plots.BLUE] * 3 + [plots.VERMILION] * 2
    assert [to_hex(line.get_color()).upper() for line in thin] == colours
    assert [to_hex(line.get_color()).upper() for line in thick] == [plots.BLUE, plots.VERMILION]

    pytorch, jittor, raw = accuracies.lines
    assert pytorch.get_ydata() == pytest.approx([0.99, 0.98, 0.97])
    assert jittor.get_ydata() == pytest.approx([0.98, 0.95])
    assert pytorch.get_xdata() == pytest.approx([-0.08, 0, 0.08])
    assert jittor.get_xdata() == pytest.approx([0.96, 1.04])
    assert [to_hex(dots.get_color()).upper() for dots in (pytorch, jittor)] == [plots.BLUE, plots.VERMILION]
    assert raw.get_ydata() == pytest.approx([0.96, 0.96])
    assert [mean.get_segments()[0][0][1] for mean in accuracies.collections] == pytest.approx([0.98, 0.965])
    assert [text.get_text() for text in accuracies.texts] == ["98.00 %", "96.50 %", "raw pixels 96.00 %"]
    assert [label.get_text() for label in accuracies.get_xticklabels()] == ["pytorch", "jittor"]


def test_running_mean():
    assert plots._running_mean(np.array([7.0])).tolist() == [7]
    assert plots._running_mean(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]  # too short for a neighbour
    assert plots._running_mean(np.eye(60)[30]) == pytest.approx(np.eye(60)[29:32].sum(0) / 3)
    assert plots._running_mean(np.ones(1000)) == pytest.approx(np.ones(1000))  # at the ends too


def test_command_line(runs):
    assert printed_by("compare", *runs).startswith("| backend | seed 0 ")


# ---- the table on the page of runs ----


def test_the_table_by_backend_and_seed_is_on_the_page(runs, tmp_path, capsys, monkeypatch):
    leave_out_figures(monkeypatch)
    for run in runs:
        save_evaluation(run / "evaluation", evaluation(0, "cfp"), STEPS)
    page = Page(write_comparison(runs, tmp_path / "out"))
    for name in ("cfp", "lfw"):
        *table, _, line = compare(capsys, *runs, "--set", name)[1].splitlines()
        assert line in page.text
        for row in [table[0], *table[2:]]:
            assert [cell.strip() for cell in row[2:-1].split("| ")] in page.rows


def test_why_there_is_no_table_by_backend_and_seed(runs, tmp_path, monkeypatch):
    leave_out_figures(monkeypatch)
    write_log(runs[1], lines(39))
    assert f"No table: {runs[1]}: expected a finished run" in Page(write_comparison(runs, tmp_path / "out")).text
    runs[1] = make_run(tmp_path / "fp64", seed=1, precision="fp64")
    assert "differ in precision: 'fp32' -> 'fp64'." in Page(write_comparison(runs, tmp_path / "out")).text
    (runs[0] / "evaluation" / "lfw.json").unlink()
    assert "No table: no set was evaluated at the end" in Page(write_comparison(runs, tmp_path / "out")).text
