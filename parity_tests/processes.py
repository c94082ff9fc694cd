"""A process for each backend, which answers cases: frameworks clash within one."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from common.backend import PREFIX
from parity_tests import progress
from parity_tests.comparison import ERROR, Arrays, read_arrays

ROOT = Path(__file__).parents[1]
STARTS = 4  # of a process that cases end
TAIL = 2000  # characters of its output that an error shows


def ask(backend: str, cases: dict[str, Arrays], root: Path = ROOT) -> dict[str, Arrays]:
    """One backend's answers to cases, both by name; an answer may be an error (`comparison.ERROR`).

    A case that ends the process has an error, and another process answers the rest. If the process ends before its
    first case, or for the fourth time, all that is left has that error.
    """
    answers: dict[str, Arrays] = {}
    for start in range(STARTS):
        left = [name for name in sorted(cases) if name not in answers]
        if not left:
            break
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "in", Path(folder) / "out"
            source.mkdir()
            for name in left:
                np.savez(source / f"{name}.npz", **cases[name])
            with progress.shown(backend, left, target):
                status, output = in_new_process(backend, source, target, root)
            answers |= {path.stem: read_arrays(path) for path in target.glob("*.npz")}
            began = target.exists()
        lost = [name for name in left if name not in answers]
        if lost:
            error = {ERROR: np.array(_end(status, output, f"at {lost[0]}" if began else "as it started"))}
            answers |= dict.fromkeys(lost[:1] if began and start < STARTS - 1 else lost, error)
    return answers


def in_new_process(backend: str, source: Path, target: Path, root: Path) -> tuple[int, str]:
    """Run `parity_tests.worker` in the user's folder, with the user's paths behind those of the project.

    Args:
        backend: name of a backend or a module; SFACE_PYTHON_<BACKEND> (dots as underscores) may name an interpreter.
        source: folder of cases.
        target: folder of answers; made once the backend is loaded.
        root: folder of the backends' packages; all else of the project is from here.

    Returns:
        Its exit status and its output.
    """
    python = os.environ.get(f"SFACE_PYTHON_{backend.upper().replace('.', '_')}", sys.executable)
    command = [python, "-P", "-m", f"{__package__}.worker", backend, str(source), str(target)]
    users = [Path(path).absolute() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = os.pathsep.join(map(str, [*([] if PREFIX else [root, ROOT]), Path.cwd(), *users]))
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command, env=os.environ | {"PYTHONPATH": paths}, stdout=output, stderr=subprocess.STDOUT, check=False
            )
        except OSError as error:
            return 127, str(error)
        output.seek(0)
        return done.returncode, output.read().decode("utf-8", "replace")


def _end(status: int, output: str, where: str) -> str:
    """How a process ended, and the end of its output, whose last line usually says why."""
    names = {-number: number.name for number in signal.Signals}
    lines = output[-TAIL:].strip().splitlines()
    headline = f"its process ended with {names.get(status, status)} {where}"
    return "\n".join([f"{headline}: {lines[-1].strip()}" if lines else headline, *lines])
