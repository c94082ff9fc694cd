"""The report of made-up runs: whole, half-way, damaged and hostile."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from common.datasets.images import encode_image
from common.datasets.pair_sets import open_pair_set, write_pair_set
from common.evaluation.evaluate import Evaluation
from common.evaluation.results import figures, save_evaluation
from common.evaluation.verification import verify_distances
from common.reports.hardest_pairs import hardest_pairs, pair_picture
from common.reports.run_report import HARDEST, write_report
from common.reports.runs import accuracy_series, metric_series, read_run
from common.tests.reports.made_runs import (
    Page,
    add_evaluations,
    evaluation,
    leave_out_figures,
    make_run,
    printed_by,
    refused,
    train_line,
    write_log,
)

HOSTILE = "<script>alert('&')</script>\"$\\frac$ \ud800\x07"


@pytest.fixture
def bare(tmp_path):
    """A run named orl-seed0 that has trained and left no evaluation."""
    return make_run(tmp_path / "orl-seed0")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with two sets and a baseline, and its report; not to be changed."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "orl-seed0")
    add_evaluations(folder)
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(finished):
    return Page(finished / "report.html")


def test_headline(page):
    saved = evaluation("lfw")
    head, *rows = page.rows[:4]
    tar = [f"TAR@FAR={far}" for far in (0.1, 0.01, 0.001)]
    assert head == ["set", "step", "pairs", "folds", "accuracy ± std", *tar, "AUC", "EER", "xnorm"]
    assert [row[0] for row in rows] == ["agedb_30", "lfw", "lfw (raw pixels)"]
    assert rows[1] == ["lfw", "100", *(figures(saved)[name] for name in head[2:])]
    assert rows[1][2:4] == ["60", "10"]
    assert rows[1][6:8] == ["–", "–"]
    assert rows[2][1] == "–"  # pixels have no step
    too_few = "30 different pairs, less those of a fold, are too few to measure a FAR of 0.001, 0.01."
    assert page.text.count(f"lfw: {too_few}") == 1


def test_settings_cards_and_figures(page):
    assert ["head.scale", "64.0"] in page.rows
    assert ["seed", "3"] in page.rows
    assert ["backend.torch", "2.13.0"] in page.rows
    assert re.search(r"optimiser steps\s*100epochs", page.text)
    assert "-120.5" in page.text  # the last loss
    assert "412" in page.text
    figures = page.figures()
    assert len(figures) == 9
    for figure in figures:
        assert ElementTree.fromstring(figure).tag.endswith("svg")
    training, (roc, det), distances = "".join(figures[:4]), figures[4:6], "".join(figures[6:])
    for label in ("intra-class", "inter-class", "to the own class", "Learning rate", "optimiser step", "lfw"):
        assert f"<!-- {label} -->" in training
    assert f"<!-- lfw (raw pixels): AUC {evaluation('lfw', 0.2).result.auc:.4f} -->" in roc
    assert "false accept rate" in roc
    assert f"<!-- lfw (raw pixels): EER {100 * evaluation('lfw', 0.2).result.eer:.2f} % -->" in det
    assert "false reject rate" in det
    assert f"<!-- threshold {evaluation().result.threshold:.2f} -->" in distances
    assert "<!-- same person (30) -->" in distances


def test_what_was_trained_stands_at_the_top(page, with_sets):
    top = page.text.partition("Verification")[0]
    for card in ("losssface, s 64.0, a 0.8, b 1.1", "backboneiresnet_small, 512-d", "devicepytorch, cpu, threads 2"):
        assert card in top
    config = {"head": {"name": "arcface", "scale": 64.0, "margin": 0.5}, "data": {"root": "faces", "image_size": 112}}
    (with_sets / "config.json").write_text(json.dumps(config))
    (with_sets / "environment.json").unlink()
    top = Page(write_report(with_sets)).text.partition("Verification")[0]
    assert "lossarcface, s 64.0, m 0.5" in top
    assert "datafaces, 112 x 112 pixels" in top
    assert "backbone" not in top
    assert "device" not in top


def test_the_page_stands_alone(finished, page):
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    ids = [value for name, value in page.attributes if name == "id"]
    assert [value for name, value in page.attributes if name == "href"] == [f"#{one}" for one in ids]
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    assert all(value for name, value in page.attributes if name == "alt")  # there are no pictures with captions here
    style = (finished / "report.html").read_text("utf-8").partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_same_run_gives_the_same_bytes(finished):
    first = (finished / "report.html").read_bytes()
    assert write_report(finished).read_bytes() == first


def test_everything_from_outside_is_escaped(bare):
    (bare / "config.json").write_text(json.dumps({"name": HOSTILE, HOSTILE: {"x" + HOSTILE: [HOSTILE]}}))
    (bare / "environment.json").write_text(json.dumps({"command": HOSTILE}))
    write_log(bare, [train_line(10), {"kind": "evaluation", "step": 10, "set": "_" + HOSTILE, "accuracy": 0.5}])
    name = HOSTILE.replace("/", "").replace("\\", "").replace("\ud800", "")
    save_evaluation(bare / "evaluation", evaluation(name), 10, method=name)
    (bare / "evaluation" / "<b>.json").write_text("{")
    page = Page(write_report(bare))
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "<script>alert('&')" in page.text  # shown, not run
    figures = page.figures()
    assert [ElementTree.fromstring(figure).tag.rpartition("}")[2] for figure in figures] == ["svg"] * 7
    assert "_&lt;script" in figures[3]  # in the legend, in spite of the underscore that hides a name from it


def test_a_run_that_has_just_begun(tmp_path):
    page = Page(write_report(tmp_path))
    assert tmp_path.name in page.text
    assert "No evaluation yet." in page.text
    assert "no training steps yet" in page.text
    assert page.text.count("Not recorded.") == 2
    assert page.figures() == []


@pytest.mark.parametrize(("head", "shown"), [({"name": "sface"}, True), ({"name": "arcface"}, False), ("sface", False)])
def test_a_negative_loss_is_explained(bare, monkeypatch, head, shown):
    leave_out_figures(monkeypatch)
    (bare / "config.json").write_text(json.dumps({"head": head}))
    assert ("a negative loss is normal" in Page(write_report(bare)).text) == shown
    write_log(bare, [])
    assert "a negative loss is normal" not in Page(write_report(bare)).text


def test_a_torn_last_line_is_left_out(bare):
    write_log(bare, [train_line(10)], tail='{"kind": "train", "st')
    assert re.search(r"optimiser steps\s*10epochs", Page(write_report(bare)).text)


def test_absent_and_odd_metrics_are_left_out(bare):
    odd = {"kind": "train", "step": 20, "loss": "high", "lr": None, "target_cosine": True, "other_cosine": 1e308}
    write_log(bare, [{"kind": "train", "step": 10, "loss": 6.9}, odd, {"kind": "note", "step": 20}])
    training = "".join(Page(write_report(bare)).figures())
    assert "<!-- total -->" in training
    for label in ("intra-class", "Learning rate", "Cosine to prototypes", "Verification accuracy"):
        assert label not in training


def test_an_unreadable_evaluation_is_named_and_the_rest_shown(bare):
    add_evaluations(bare)
    (bare / "evaluation" / "lfw.npz").unlink()
    (bare / "evaluation" / "agedb_30.json").write_text("{")
    page = Page(write_report(bare))
    assert "lfw.npz" in page.text
    assert "agedb_30.json: expected an evaluation" in page.text
    assert [row[0] for row in page.rows[1:3]] == ["lfw (raw pixels)", "name"]


def test_pairs_of_one_kind_have_no_roc(tmp_path):
    one_kind = Evaluation("lfw", verify_distances(np.linspace(0.1, 1, 20), np.ones(20, bool)), 1.0)
    save_evaluation(tmp_path / "evaluation", one_kind, 5)
    page = Page(write_report(tmp_path))
    assert page.rows[1][5:10] == ["–"] * 5
    assert "too few to measure a FAR" not in page.text
    assert "No set has both kinds of pair." in page.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "config.json: expected the settings of a run, a JSON object"),
        ("environment.json", "[1]", "environment.json: expected the environment of a run, a JSON object, got list"),
        ("log.jsonl", "nonsense\n{}\n", "log.jsonl line 1"),
        ("log.jsonl", json.dumps(train_line(2**60)) + "\n", "log.jsonl: expected steps from 0 to"),
    ],
)
def test_damaged_files_are_named(bare, name, content, message):
    (bare / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(bare)
    assert not (bare / "report.html").exists()


def test_no_such_run(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="expected a run folder, found none"):
        write_report(tmp_path / "absent")
    expected = f"error: {tmp_path / 'absent'}: expected a run folder, found none\n"
    assert refused("report", capsys, tmp_path / "absent") == expected


def test_command_line(bare):
    assert printed_by("report", bare) == f"{bare / 'report.html'}\n"


# ---- the hardest pairs ----


SIDE = 24


@pytest.fixture
def with_sets(finished, tmp_path, monkeypatch):
    """A copy of the finished run whose evaluation sets are where its configuration says."""
    leave_out_figures(monkeypatch)
    run = shutil.copytree(finished, tmp_path / "run")
    for name in ("lfw", "agedb_30"):
        issame = evaluation(name).result.issame
        images = np.random.default_rng(0).integers(0, 256, (2 * len(issame), 3, SIDE, SIDE), np.uint8)
        write_pair_set(tmp_path / "sets" / f"{name}.bin", map(encode_image, images), issame)
    (run / "config.json").write_text(json.dumps({"name": "orl", "data": {"root": str(tmp_path / "sets")}}))
    return run


def test_the_hardest_pairs_are_shown(with_sets, tmp_path):
    page = Page(write_report(with_sets))
    pair_set, result = open_pair_set(tmp_path / "sets" / "lfw.bin"), evaluation("lfw").result
    impostors, genuine = hardest_pairs(result, HARDEST)
    pictures = page.images("jpeg")
    assert len(pictures) == 2 * 2 * HARDEST
    assert pictures[-2 * HARDEST :] == [pair_picture(pair_set, pair) for pair in [*impostors, *genuine]]
    nearest = result.distances[impostors[0]]
    right = "wrong" if nearest < result.threshold else "right"
    assert f"pair {impostors[0]}, distance {nearest:.2f}, {right}" in page.text
    assert page.text.index("Most similar different people") < page.text.index("Least similar images of one person")
    text = (with_sets / "report.md").read_text()
    for number in range(1, HARDEST + 1):
        assert f"report_figures/lfw-same-{number}.jpg" in text
    found = (with_sets / "report_figures" / "lfw-different-1.jpg").read_bytes()
    assert found == pair_picture(pair_set, impostors[0])


def test_right_and_wrong(with_sets):
    """All of these are errors: the nearest impostors lie below the threshold, the farthest genuine pairs above."""
    distances = np.where(np.arange(60) % 2 == 0, 0.5, 1.5)
    distances[:20] = 2 - distances[:20]
    result = verify_distances(distances, np.arange(60) % 2 == 0)
    save_evaluation(with_sets / "evaluation", Evaluation("lfw", result, 1.0), 100)
    (with_sets / "evaluation" / "agedb_30.json").unlink()
    text = Page(write_report(with_sets)).text
    assert text.count("distance 0.50, wrong") == text.count("distance 1.50, wrong") == HARDEST


def test_sets_that_are_gone_or_others(with_sets, tmp_path):
    (tmp_path / "sets" / "lfw.bin").unlink()
    write_pair_set(tmp_path / "sets" / "agedb_30.bin", [encode_image(np.zeros((3, 8, 8), np.uint8))] * 4, [True] * 2)
    page = Page(write_report(with_sets))
    assert f"Not shown: {tmp_path / 'sets' / 'lfw.bin'}: expected an evaluation set, found none" in page.text
    assert f"Not shown: {tmp_path / 'sets' / 'agedb_30'}.bin is another set than the one" in page.text
    assert page.images("jpeg") == []


def test_a_damaged_set_does_not_stop_the_report(with_sets, tmp_path):
    for name in ("lfw", "agedb_30"):
        path = tmp_path / "sets" / f"{name}.bin"
        path.write_bytes(path.read_bytes().replace(b"PNG", b"XXX"))
    page = Page(write_report(with_sets))
    assert page.text.count("do not decode as an image") == 2
    assert page.images("jpeg") == []


@pytest.mark.parametrize("data", [None, [], {"root": 7}, {"root": "a\0b"}])
def test_a_configuration_that_does_not_say_where_the_sets_are(with_sets, data):
    (with_sets / "config.json").write_text(json.dumps({"data": data}))
    assert "Not shown: config.json does not say" in Page(write_report(with_sets)).text


def test_markdown_says_the_same(finished, page):
    text = (finished / "report.md").read_text()
    assert text.startswith("# orl\n\norl-seed0\n\n- loss: sface, s 64.0, a 0.8, b 1.1\n")
    lines = [line.replace("\\", "").strip("| ") for line in text.splitlines() if "|" in line]
    for row in page.rows:
        assert " | ".join(row).replace("\u00a0", " ") in lines
    for name in ("training-1", "training-4", "roc-1", "det-1", "distances-3"):
        assert (finished / "report_figures" / f"{name}.svg").read_text() in page.figures()
        assert f"](report_figures/{name}.svg)" in text


# ---- series ----


def test_of_a_step_logged_twice_the_later_line_counts():
    lines = [train_line(10, loss=1.0), train_line(20, loss=2.0), train_line(10, loss=3.0)]
    steps, losses = metric_series(lines)["loss"]
    assert steps.tolist() == [10, 20]
    assert losses.tolist() == [3, 2]


def test_an_evaluation_is_no_training_step(bare):
    write_log(bare, [train_line(10), {"kind": "evaluation", "step": 20, "set": "lfw", "accuracy": 0.5}])
    assert [record["step"] for record in read_run(bare).train] == [10]


def test_accuracy_by_set():
    lines = [
        {"kind": "evaluation", "step": 10, "set": "a", "accuracy": 0.5},
        {"kind": "evaluation", "step": 10, "set": "b", "accuracy": 0.6},
        train_line(20, accuracy=0.9),
        {"kind": "evaluation", "step": 20, "set": "a", "accuracy": 0.7},
    ]
    series = accuracy_series(lines)
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in series.items()} == {
        "a": ([10, 20], [0.5, 0.7]),
        "b": ([10], [0.6]),
    }
