"""Progress on stderr, with a terminal and without."""

import io
import time

import pytest

from parity_tests import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "first", "second"),
    [
        (io.StringIO(), "mine: 0 of 2 cases, 0 cases/s; a\n", "cases/s; b\n"),
        (Terminal(), "mine:   0%|", "| 1/2 ["),
    ],
)
def test_answers_are_counted_as_they_appear(stream, first, second, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("common.io.progress.SECONDS", 0.05)
    monkeypatch.setattr(progress, "GLANCE", 0.01)

    def wait_for(text: str) -> None:
        for _ in range(3000):
            if text in stream.getvalue():
                return
            time.sleep(0.01)
        pytest.fail(f"expected {text!r} in {stream.getvalue()!r}")

    with progress.shown("mine", ["a", "b"], tmp_path):
        wait_for(first)
        assert second not in stream.getvalue()
        (tmp_path / "a.npz").touch()
        wait_for(second)
