"""Progress: a bar on a terminal, a line now and then elsewhere, and messages on lines of their own."""

import io
import re

import pytest

from common.io import progress
from common.io.progress import ProgressBar, say, tracked
from common.tests.backend_checks.lost_ranks import ROOT


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What a user sees, line by line: a carriage return writes over what is there."""
        seen = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for text in line.split("\r"):
                shown = text + shown[len(text) :]
            seen.append(shown.rstrip())
        return seen


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def terminal(monkeypatch) -> Terminal:
    """No fixture: pytest sets the streams between a fixture and its test."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    return terminal


def test_a_line_every_thirty_seconds_without_a_terminal(clock, capsys):
    for _ in tracked(range(700), "lfw\x1b[2J", "images"):
        clock.now += 0.125
    assert capsys.readouterr().err == (
        r"lfw\x1b[2J: 240 of 700 images, 8 images/s" + "\n" + r"lfw\x1b[2J: 480 of 700 images, 8 images/s" + "\n"
    )


def test_short_work_says_nothing(clock, capsys):
    for _ in tracked(iter("abc"), "lfw", "images"):
        clock.now += 9
    assert capsys.readouterr().err == ""


def test_a_line_has_the_latest_note_and_the_rate_of_the_work_alone(clock, capsys):
    with ProgressBar("run", "images", 100, done=40) as bar:
        bar.update(10)
        clock.now += 60  # an evaluation
        bar.unpause()
        bar.note("step 5: loss 0.1")
        clock.now += 4
        bar.update(2)
    assert capsys.readouterr().err == "run: 52 of 100 images, 0.5 images/s; step 5: loss 0.1\n"


def test_who_is_not_shown_is_silent(clock, capsys, monkeypatch):
    for seen in (lambda: capsys.readouterr().err, terminal(monkeypatch).getvalue):
        with ProgressBar("run", "images", shown=False) as bar:
            clock.now += 99
            bar.update()
        assert seen() == ""


def test_a_message_is_not_glued_to_a_bar(monkeypatch):
    screen = terminal(monkeypatch)
    for number in tracked(range(3), "align", "images"):
        say(f"left out: {number}\x07.jpg")
        assert "images/s" in screen.lines()[-1]
    assert screen.lines() == [rf"left out: {number}\x07.jpg" for number in range(3)] + [""]


def test_a_short_bar_is_not_shown(monkeypatch):
    screen = terminal(monkeypatch)
    with ProgressBar("compile", "files", delay=60) as bar:
        bar.update()
        bar.update(0)
    assert screen.getvalue() == ""


def test_all_progress_is_shown_so():
    """Tests aside."""
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ROOT.glob("*/__init__.py")
        for path in package.parent.rglob("*.py")
        if "tests" not in path.parts[len(ROOT.parts) :]
        and re.search(r"^\s*(import|from) tqdm\b", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert found == ["common/io/progress.py"]
