"""Programs that are asked for a line."""

import subprocess
import sys

import pytest

from common.io import programs
from common.io.programs import output_of


def test_what_a_program_prints(tmp_path):
    assert output_of([sys.executable, "-c", "import os; print(os.getcwd())"], tmp_path) == f"{tmp_path}\n"


def test_a_failure_is_an_error():
    with pytest.raises(subprocess.CalledProcessError):
        output_of([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(FileNotFoundError):
        output_of(["no-such-program"])


def test_a_slow_program_is_not_killed(tmp_path, monkeypatch):
    """Jittor ends a process one of whose children was killed; SIGTERM it lets pass."""
    monkeypatch.setattr(programs, "PATIENCE", 1)
    program = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("asked").touch(), sys.exit(0)))
time.sleep(60)
"""
    with pytest.raises(subprocess.TimeoutExpired):
        output_of([sys.executable, "-c", program], tmp_path)
    assert (tmp_path / "asked").exists()
