"""The command, the worker, and the comparison."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from parity_tests import processes, worker
from parity_tests.__main__ import main
from parity_tests.cases.inputs import planted
from parity_tests.comparison import Check, Row, as_arrays
from parity_tests.report import details, junit, markdown
from parity_tests.setting import Setting
from parity_tests.tolerances import TOLERANCES

ONE = np.ones(())


def test_the_table_and_the_files(backend, tmp_path, capsys):
    assert main(["--backends", backend, "--levels", "1", "2", "3", "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert f"| level | quantity | dtype | {backend} |" in page
    assert f"covered: {backend}" in page
    assert (tmp_path / "parity.md").read_text() == page
    report = json.loads((tmp_path / "parity.json").read_text())
    assert {row["level"] for row in report["rows"]} == {1, 2, 3}
    assert all(row["status"] == "passed" and row["error"] <= row["tolerance"] for row in report["rows"])
    assert report["environment"]["backends"][backend]["version"]


@pytest.mark.parametrize("arguments", [["--levels", "9"], ["--backbones", "vgg"], ["--backends", "pytorch,pytorch"]])
def test_wrong_options_are_named(arguments, capsys):
    assert main(arguments) == 2
    assert "error" in capsys.readouterr().err


def test_a_failed_cell_says_so_and_names_its_case():
    rows = [
        Row(1, "loss", "float64", "pytorch", 2e-3, 1e-11, "case-1"),
        Row(7, "bits", "float64", "pytorch", 0, 0, "x"),
    ]
    table = markdown(rows, ["pytorch", "other"])
    assert "**2.0e-03 / 1e-11 FAILED** (case-1)" in table
    assert "| 7 | bits | float64 | same bits |  |" in table


def test_last_words_are_printed_once_and_cannot_move_the_cursor():
    row = Row(1, "loss", "float64", "mine", np.inf, 1e-11, "case", "boom|\nlast \x1b[2Jwords\x00")
    rows = [row, row._replace(dtype="float32")]
    assert "| **FAILED** (case), boom\\| |" in markdown(rows, ["mine"])
    assert details(rows) == ["", "mine loss float64 (case):", "", "    last  [2Jwords "]
    (found, _) = ElementTree.fromstring(junit(rows)).iter("failure")
    assert found.get("message") == "FAILED (case), boom|"
    assert found.text == "boom|\nlast  [2Jwords "


def test_errors_are_relative_to_the_scale_and_beyond_the_slack():
    check = Check("q", "loss", "out", np.array([1.0, 2.0]), np.float64(4), np.array([0.0, 1.0]))
    assert check.error(np.array([1.0, 2.5])) == 0
    assert check.error(np.array([2.0, 2.0])) == 0.25
    assert check.error(np.array([1.0])) == np.inf
    assert check.error(np.array([1.0, np.nan])) == np.inf


def test_where_the_truth_is_not_finite_no_finite_number_will_do():
    check = Check("q", "loss", "out", np.array(np.nan), 1.0)
    assert check.error(np.array(np.inf)) == check.error(np.array(np.nan)) == 0
    assert check.error(np.array(1e30)) == np.inf


def test_exact_means_bits():
    check = Check("q", "checkpoint", "out", np.array([1.0]), ONE)
    assert check.error(np.array([1.0])) == 0
    assert check.error(np.nextafter(np.array([1.0]), 2)) == np.inf


def test_a_row_with_nan_has_not_passed():
    assert Row(1, "q", "float64", "pytorch", float("nan"), 1.0, "case").status == "failed"


@pytest.mark.usefixtures("answers_in_forks")
def test_the_worker_answers_one_file(backend, tmp_path):
    """As docs/parity.md describes it."""
    case = planted(4, 5, 6)
    parameters = {"scale": 64, "intra_slope": 80, "inter_slope": 80, "intra_center": 0.87, "inter_center": 1.2}
    given = {"kind": "sface", **case._asdict(), "dtype": "float32", "form": "plain", **parameters}

    def ask(case):
        return processes.ask(backend, {"case": as_arrays(case)})["case"]

    answer = ask(given)
    assert answer["loss"].shape == answer["intra_loss"].shape == answer["inter_loss"].shape == ()
    assert answer["grad_embeddings"].shape == (4, 6)
    assert answer["grad_class_weight"].shape == (5, 6)
    assert all(answer[name].dtype == np.float32 for name in answer)
    weights = ask(given | {"kind": "sface_weights"})
    assert (weights["intra_weight"].shape, weights["inter_weight"].shape) == ((4,), (4, 5))


def test_the_worker_names_what_it_does_not_know(capsys):
    with pytest.raises(ValueError, match="kind: expected one of sface, sface_weights, margin"):
        worker.answer(None, {"kind": np.array("vgg")})
    assert worker.main(["pytorch"]) == 2
    assert "usage" in capsys.readouterr().err


def test_every_tolerance_has_a_reason_and_a_measurement_below_it():
    for name, tolerance in TOLERANCES.items():
        assert len(tolerance.reason) > 20, name
        assert tolerance.float64 == 0 or {"cpu fp64", "cpu fp32"} <= set(tolerance.measured), name
        for key, measured in tolerance.measured.items():
            device, precision = key.split()
            setting = Setting(device, "fp32" if precision == "fp64" else precision)
            bound = tolerance.of("float64" if precision == "fp64" else "float32", setting)
            assert 0 < measured <= bound, (name, key)
