"""Known failures: a file of patterns that must stay true."""

import pytest

from parity_tests import suite
from parity_tests.__main__ import main
from parity_tests.comparison import Row
from parity_tests.known import excuse, read_known
from parity_tests.report import markdown, summary

GOOD = Row(1, "sface plain: loss", "float64", "mine", 1e-14, 1e-11, "case")
BAD = GOOD._replace(dtype="float32", error=2e-3, tolerance=1e-5)
LACKING = GOOD._replace(quantity="arcface: loss", note="margin_head", verdict="not provided")
LINES = "# ours\n\nmine sface * float32   # TF32 is on: issue #12\n"


@pytest.fixture
def known(tmp_path):
    def read(text: str):
        (tmp_path / "known.txt").write_text(text)
        return read_known(tmp_path / "known.txt")

    return read


def test_a_known_failure_does_not_fail(known):
    rows, complaints = excuse([GOOD, BAD, LACKING], known(LINES))
    assert [row.status for row in rows] == ["passed", "known", "not provided"]
    assert complaints == []
    assert "| 2.0e-03 / 1e-05, known to fail: TF32 is on: issue #12 |" in markdown(rows, ["mine"])
    assert summary(rows) == "1 of 2 comparisons hold; 1 known to fail; 1 not provided"


def test_a_known_failure_that_passes_fails(known, tmp_path):
    rows, _ = excuse([GOOD, BAD], known("mine sface*loss * # both\n"))
    assert [row.status for row in rows] == ["failed", "known"]
    assert rows[0].note == f"passes, but is known to fail in {tmp_path}/known.txt line 1: both"


def test_a_pattern_that_matches_nothing_is_an_error(known, tmp_path):
    rows, complaints = excuse([GOOD], known(f"{LINES}yours * # reason\n"))
    assert rows == [GOOD]
    assert complaints == [
        f"{tmp_path}/known.txt line {line}: expected a row that matches {pattern!r}, found none"
        for line, pattern in ((3, "mine sface * float32"), (4, "yours *"))
    ]


@pytest.mark.parametrize("line", ["mine sface * float32", "mine sface * float32 #", " # no\n#\nx #  "])
def test_a_line_without_a_reason_is_named(known, line):
    number = len(line.splitlines())
    with pytest.raises(ValueError, match=f"known.txt line {number}: expected PATTERN # REASON, got"):
        known(line)


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "known.txt").write_bytes(b"\xe9")
    for name in ("known.txt", "missing.txt"):
        assert main(["--backends", "mine", "--known", str(tmp_path / name)]) == 2
        assert str(tmp_path / name) in capsys.readouterr().err


def test_the_command_takes_the_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(suite, "start", lambda *_, **__: ({"mine": {}}, []))
    monkeypatch.setattr(suite, "run", lambda *_, **__: [GOOD, BAD])
    arguments = ["--backends", "mine", "--known", str(tmp_path / "known.txt")]
    for text, status in ((LINES, 0), ("", 1), ("mine * # all\n", 1), (f"{LINES}yours # none\n", 1)):
        (tmp_path / "known.txt").write_text(text)
        assert main(arguments) == status
    assert f"error: {tmp_path}/known.txt line 4: expected a row" in capsys.readouterr().out
