"""Two runs, row by row; and files that are no runs."""

import json

import pytest

from common.io.files import write_json
from parity_tests.compare import main, moved, read_run
from parity_tests.comparison import Row
from parity_tests.report import record

ROW = Row(1, "sface plain: loss", "float64", "mine", 1e-13, 1e-11, "case")
SAME = ROW._replace(quantity="arcface: loss", error=1e-17)
START = Row(0, "start of its process", "", "other", float("inf"), float("nan"), "describe", "no\nwords")


@pytest.fixture
def written(tmp_path):
    def write(name: str, *rows: Row, **facts):
        value = record(rows, {"mine": {"version": "1.0"}})
        value["environment"] |= {"commit": "abc", "time": "now", **facts}
        write_json(tmp_path / name, value)
        return tmp_path / name

    return write


def changes(first, second, factor: float = 3.0) -> list[list[str]]:
    return [line[1:2] + line[4:] for line in moved(read_run(first), read_run(second), factor)]


@pytest.mark.parametrize(
    ("row", "after"),
    [
        (ROW._replace(error=4e-13), "4.0e-13 / 1e-11 passed"),
        (ROW._replace(error=2e-14), "2.0e-14 / 1e-11 passed"),
        (ROW._replace(error=2e-13, tolerance=1e-13), "2.0e-13 / 1e-13 failed"),
        (ROW._replace(tolerance=1e-12), "1.0e-13 / 1e-12 passed"),
        (ROW._replace(error=float("inf")), "failed"),
        (ROW._replace(verdict="known"), "1.0e-13 / 1e-11 known"),
        (ROW._replace(error=float("inf"), verdict="not provided"), "not provided"),
    ],
)
def test_what_moved(written, row, after):
    first, second = written("a", ROW, SAME, START), written("b", row, SAME._replace(error=4e-16), START)
    assert changes(first, second) == [[ROW.quantity, "1.0e-13 / 1e-11 passed", after]]


def test_rounding_does_not_move_and_the_factor_can_be_set(written):
    first, second = written("a", ROW, SAME), written("b", ROW._replace(error=2e-13), SAME._replace(error=1.7e-15))
    assert changes(first, second) == []
    assert changes(first, second, 2) == [[ROW.quantity, "1.0e-13 / 1e-11 passed", "2.0e-13 / 1e-11 passed"]]


def test_the_command_prints_what_ran_and_what_moved(written, capsys):
    first, second = written("a", ROW, SAME), written("b", ROW._replace(error=1e-9), commit="def", device="cuda:0")
    assert main([str(first), str(second)]) == 0
    page = capsys.readouterr().out
    assert "| commit | abc | def |" in page
    assert "| device | cpu | cuda:0 |" in page
    assert "python" not in page
    assert "mine: version" not in page
    assert "| 1 | arcface: loss | float64 | mine | 1.0e-17 / 1e-11 passed |  |" in page
    assert "2 rows moved; 1 is in both runs" in page
    assert main([str(second), str(second)]) == 0
    assert "0 rows moved; 1 is in both runs" in capsys.readouterr().out


HOSTILE = {
    "no JSON": "{",
    "another JSON": '{"name": "run"}',
    "a list": "[]",
    "rows of another kind": '{"rows": [1], "environment": {}}',
    "deep": "[" * 100_000,
    **{
        f"{name} {value}": json.dumps({"rows": [{**record([ROW], {})["rows"][0], name: value}], "environment": {}})
        for name, value in (
            ("level", "1"),
            ("level", [1]),
            ("status", "good"),
            ("status", {}),
            ("quantity", None),
            ("error", "x"),
            ("tolerance", []),
        )
    },
    "twice": json.dumps({"rows": record([ROW, ROW], {})["rows"], "environment": {}}),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_foreign_file_is_named(written, tmp_path, capsys, text):
    (tmp_path / "foreign.json").write_text(text)
    assert main([str(written("a", ROW)), str(tmp_path / "foreign.json")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path}/foreign.json: expected ")
    assert printed.out == ""


def test_a_missing_file_is_named(written, tmp_path, capsys):
    assert main([str(tmp_path / "none.json"), str(written("a", ROW))]) == 2
    assert "none.json: is missing" in capsys.readouterr().err


def test_a_file_cannot_move_the_cursor(written, capsys):
    first, second = written("a", ROW), written("b", ROW._replace(quantity="\x1b[2J|new"), numpy=["\x1b[2J"])
    assert main([str(first), str(second)]) == 0
    page = capsys.readouterr().out
    assert "\x1b" not in page
    assert "[2J\\|new" in page
