"""A head on several ranks: measured, fitted, and projected to many GPUs."""

import re
import sys

import pytest

from benchmarks import scale
from benchmarks.commands import main
from common.io.files import read_json


def record(form="sharded sface", classes=1000, seconds=(0.02, 0.01, 0.03), sent=(2e6, 1e6, 3e6), ranks=2):
    case = {"form": form, "classes": classes, "batch": 8, "dim": 16, "turns": 3, "ranks": ranks}
    return {**case, "seconds": list(seconds), "sent": list(sent), "memory": 3 * 2**20}


def test_bytes_of_a_step():
    """Of three ranks, each sends two thirds of what a ring gathers or scatters, and twice that for a sum."""
    whole = scale.bytes_sent("data parallel", 3, 8, 1000, 16)
    assert whole == pytest.approx(2 * 2 / 3 * 4 * 1000 * 16)
    embeddings = 2 / 3 * 24 * 16 * 4
    assert scale.bytes_sent("sharded sface", 3, 8, 10**9, 16) == pytest.approx(
        embeddings + embeddings + 2 / 3 * 24 * 8 + 2 * (2 * 2 / 3 * 24 * 4)
    )


def test_the_model_is_fitted_to_relative_errors():
    records = [
        record(form, classes, seconds=[0.01 + 2e-9 * classes * 16 / (1 if form == "data parallel" else 2)])
        for form in scale.FORMS
        for classes in (10**5, 10**6, 10**7)
    ]
    for constant, slope, error in scale.fit(records).values():
        assert (constant, slope, error) == pytest.approx((0.01, 2e-9, 0), abs=1e-9)


def test_tables():
    row = scale.measured_table([record()]).splitlines()[2]
    assert row == "| 1,000 | 2 | sharded sface | 20.0 (10.0, 30.0) | 2,000,000 | 1,216 | 3 | 0 |"
    rows = scale.projection(scale.Options()).splitlines()[2:]
    assert len(rows) == 18
    assert rows[2] == "| 1e7 | 8 | sharded sface | 116 | 0.0738 | 3.69 | 7.68 |"


@pytest.mark.skipif(sys.platform != "linux", reason="counts bytes in /proc")
def test_a_step_on_two_ranks_is_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scale, "FORMS", ("data parallel",))
    arguments = ["--classes", "20000", "--dim", "16", "--batch", "4", "--turns", "2", "--out", str(tmp_path)]
    assert main(["scale", *arguments]) == 0
    assert "| 20,000 | 2 | data parallel |" in capsys.readouterr().out
    found, exchange = read_json(tmp_path / "scale.json", "figures")["details"]
    assert len(found["seconds"]) == 2
    assert min(found["sent"]) >= 4 * 20_000 * 16  # what both send of 2 M (K - 1) / K
    assert exchange["form"] == scale.EXCHANGE
    assert min(exchange["sent"]) >= scale.bytes_sent(scale.EXCHANGE, 2, 4, 20_000, 16)
    assert max(exchange["sent"]) < 4 * 20_000 * 16
    assert re.search(r"Not measured:", (tmp_path / "scale.md").read_text())


def test_wrong_options_are_named(capsys):
    assert main(["scale", "--classes", "1", "--turns", "0"]) == 2
    assert "expected at least 1 turn" in capsys.readouterr().err
