"""Damaged files are read or refused by an error that names them, within bounds of memory and time."""

import os
import subprocess
import sys
from pathlib import Path

COUNT = os.environ.get("SFACE_FUZZ", "300")


def test_damaged_files(tmp_path):
    command = [sys.executable, "-m", "common.tests.fuzz", str(tmp_path / "files"), COUNT]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
