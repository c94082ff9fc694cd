"""The files of an evaluation are read back as they were; damaged ones, or files of two evaluations, are named."""

import dataclasses
import io
import json
import math
import zipfile

import numpy as np
import pytest

from common.evaluation.evaluate import Evaluation
from common.evaluation.results import (
    evaluation_record,
    figure_table,
    figures,
    load_evaluation,
    save_evaluation,
    threshold_table,
)
from common.evaluation.verification import verify_distances
from common.io.text import NOTHING


def evaluation(name="lfw", seed=0, issame=None):
    rng = np.random.default_rng(seed)
    issame = rng.random(60) < 0.5 if issame is None else issame
    return Evaluation(name, verify_distances(np.clip(rng.normal(1.4 - 0.5 * issame, 0.3), 0, 4), issame), 21.5, 1.25)


def test_saved_and_loaded(tmp_path):
    first = evaluation()
    path = save_evaluation(tmp_path / "evaluation", first, 600)
    assert path == tmp_path / "evaluation" / "lfw.json"
    saved = load_evaluation(path)
    assert (saved.step, saved.method) == (600, None)
    assert evaluation_record(saved.evaluation, 600) == evaluation_record(first, 600)
    assert (saved.evaluation.result.distances == first.result.distances).all()
    assert (saved.evaluation.result.issame == first.result.issame).all()
    assert (saved.evaluation.result.fold_accuracies == first.result.fold_accuracies).all()
    assert saved.evaluation.plain_threshold == 1.25

    record = json.loads(path.read_text())
    assert record["pairs"] == 60
    assert record["folds"] == 10
    assert record["tar"] == {"0.1": first.result.tar[0.1], "0.01": None, "0.001": None}  # of 60 pairs
    assert record["tar_std"] == {"0.1": first.result.tar_std[0.1], "0.01": None, "0.001": None}
    assert "squared L2" in record["protocol"]
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["distances", "fpr", "issame", "tpr"]
        assert (arrays["fpr"] == first.result.roc.fpr).all()
    assert sorted(p.name for p in path.parent.iterdir()) == ["lfw.json", "lfw.npz"]


@pytest.mark.parametrize("value", ["1.25", 4.5, float("nan"), True])
def test_a_threshold_without_mirror_images_that_is_none(tmp_path, value):
    path = save_evaluation(tmp_path, evaluation(), 600)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"plain_threshold": value}))
    with pytest.raises(ValueError, match="plain_threshold"):
        load_evaluation(path)
    del record["plain_threshold"]  # as older versions wrote it
    path.write_text(json.dumps(record))
    assert load_evaluation(path).evaluation.plain_threshold is None


def test_thresholds_are_distances_and_cosines():
    first = evaluation()
    head, rows = threshold_table([("lfw", first), ("given", dataclasses.replace(first, plain_threshold=None))])
    assert [len(row) for row in rows] == [len(head)] * 2
    distance = first.result.threshold
    assert rows[0] == ["lfw", f"{distance:.4f}", f"{1 - distance / 2:.4f}", "1.2500", "0.3750"]
    assert rows[1][3:] == [NOTHING, NOTHING]


def test_a_baseline_lies_beside_the_run(tmp_path):
    save_evaluation(tmp_path, evaluation(), 600)
    path = save_evaluation(tmp_path, evaluation(seed=1), 0, method="raw_pixels")
    assert path.name == "lfw.raw_pixels.json"
    assert load_evaluation(path).method == "raw_pixels"
    assert load_evaluation(tmp_path / "lfw.json").step == 600


def test_figures_that_nothing_measured_are_null(tmp_path):
    one_kind = evaluation(issame=np.ones(60, bool))
    record = evaluation_record(one_kind, 5)
    assert record["kind"] == "evaluation"
    assert record["auc"] is record["eer"] is record["tar"]["0.001"] is None
    json.dumps(record, allow_nan=False)
    loaded = load_evaluation(save_evaluation(tmp_path, one_kind, 5)).evaluation.result
    assert math.isnan(loaded.auc)
    assert loaded.accuracy == one_kind.result.accuracy


def test_an_old_file_with_a_rate_that_its_pairs_cannot_measure(tmp_path):
    path = save_evaluation(tmp_path, evaluation(), 600)
    record = json.loads(path.read_text())
    record["tar"]["0.001"] = record["tar_std"]["0.001"] = 0.5
    path.write_text(json.dumps(record))
    saved = load_evaluation(path)
    assert math.isnan(saved.evaluation.result.tar[0.001])
    assert figures(saved.evaluation)["TAR@FAR=0.001"] == NOTHING


def test_the_table():
    named = {"lfw": evaluation(), "one": evaluation(issame=np.ones(60, bool)), "absent": None}
    head, rows = figure_table(named.items(), "method")
    rates = ["TAR@FAR=0.1", "TAR@FAR=0.01", "TAR@FAR=0.001"]
    assert head == ["method", "pairs", "folds", "accuracy ± std", *rates, "AUC", "EER", "xnorm"]
    result = named["lfw"].result
    assert rows[0] == [
        "lfw", "60", "10", f"{100 * result.accuracy:.2f} ± {100 * result.std:.2f} %",
        f"{100 * result.tar[0.1]:.2f} ± {100 * result.tar_std[0.1]:.2f} %", NOTHING, NOTHING,
        f"{result.auc:.4f}", f"{100 * result.eer:.2f} %", "21.5",
    ]  # fmt: skip
    assert rows[1][4:9] == [NOTHING] * 5
    assert rows[2] == ["absent", "missing", *[NOTHING] * 8]


@pytest.mark.parametrize("name", ["../lfw", "a/b", "", ".hidden", "a\\b", "a\0b"])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="part of a file name"):
        save_evaluation(tmp_path / "evaluation", evaluation(name), 1)
    assert not list(tmp_path.iterdir())


def test_a_kill_between_the_two_writes_is_found(tmp_path):
    path = save_evaluation(tmp_path, evaluation(seed=1), 100)
    old = path.read_bytes()
    save_evaluation(tmp_path, evaluation(seed=2), 200)
    path.write_bytes(old)
    with pytest.raises(ValueError, match="not of one evaluation"):
        load_evaluation(path)


def edited(**changes):
    def edit(path):
        record = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in record.items() if value is not KeyError}))

    return edit


def header(shape, dtype="<f8", data=b""):
    def edit(path):
        file = io.BytesIO()
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path.with_suffix(".npz"), "w") as archive:
            archive.writestr("distances.npy", file.getvalue() + data)
            archive.writestr("padding", bytes(1000))

    return edit


def array(**changes):
    def edit(path):
        path = path.with_suffix(".npz")
        np.savez(path, **dict(np.load(path)) | changes)

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text('{"set": "lf'), "lfw.json: expected an evaluation"),
        (lambda path: path.write_text("[1]"), "lfw.json: expected an evaluation"),
        (lambda path: path.write_text("[" * 100_000), "lfw.json: expected an evaluation"),
        (edited(step=KeyError), "expected an evaluation"),
        (edited(pairs="many"), "expected counts"),
        (edited(pairs=-60), "expected counts"),
        (edited(pairs=10**15), r"expected distances \(1000000000000000,\) float64 .* got \(60,\)"),
        (edited(xnorm=math.nan), "finite norm"),
        (edited(xnorm=10**400), "expected an evaluation"),
        (edited(set=5), "names of a set"),
        (edited(folds=1), "at least 2 folds"),
        (edited(accuracy=0.99), "accuracy is 0.99 here"),
        (edited(eer=None), "eer is None here"),
        (edited(auc=10**400), "auc is 1000"),
        (lambda path: path.with_suffix(".npz").write_bytes(b"PK\x03\x04" + bytes(2000)), "npz: cannot read it"),
        (
            header((10**12,)),
            r"cannot read distances \(0 bytes in place of 8000000000000 for float64 \(1000000000000,\)",
        ),
        (header((60,), "<i8", bytes(480)), "cannot read issame"),
        (array(issame=np.zeros(60)), r"and issame \(60,\) bool, got \(60,\) float64 and \(60,\) float64"),
        (array(distances=np.zeros(60, int)), "got .* int64 and"),
        (array(distances=np.zeros((60, 1))), r"got \(60, 1\) float64"),
        (header((60,), "|O"), "cannot read distances .*Python objects"),
        (header((60,), data=bytes(100)), "cannot read distances"),
        (header((60,), data=np.full(60, np.nan).tobytes()), "cannot read issame"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    path = save_evaluation(tmp_path, evaluation(), 100)
    damage(path)
    with pytest.raises(ValueError, match=message):
        load_evaluation(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lfw\.json"):
        load_evaluation(tmp_path / "lfw.json")
    path = save_evaluation(tmp_path, evaluation(), 100)
    path.with_suffix(".npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lfw\.npz"):
        load_evaluation(path)
