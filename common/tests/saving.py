"""A kill in the middle of a checkpoint, and what must be left then."""

import os
import signal
import time
from pathlib import Path

from common.weights.checkpoint import STATE, latest_checkpoint, load_checkpoint


def kill_while_saving(process: int, run: Path, seconds: float = 60) -> None:
    """kill -9 of a rank 0 when it next saves, between the first and the last file of the checkpoint.

    It is stopped for a look whether it still saves, and goes on if it does not: a busy machine may be late.
    """
    end = time.monotonic() + seconds
    while True:
        assert time.monotonic() < end, f"no checkpoint was begun in {seconds:g} s"
        if is_saving(run):
            os.kill(process, signal.SIGSTOP)
            while _state(process) not in "TZX":
                pass
            if is_saving(run):
                os.kill(process, signal.SIGKILL)
                return
            os.kill(process, signal.SIGCONT)
        time.sleep(0.001)


def last_step(run: Path) -> int:
    """Of the last checkpoint of a run, which must be whole; -1 if there is none."""
    latest = latest_checkpoint(run)
    return -1 if latest is None else load_checkpoint(latest).step


def is_saving(run: Path) -> bool:
    """Whether a checkpoint, newer than the last whole one, lacks its state, which is written last; by either name."""
    folder = run / "checkpoints"
    steps = {path: int(path.name.removesuffix(".tmp").partition("-")[2]) for path in folder.glob("*step-*")}
    whole = max((step for path, step in steps.items() if (path / STATE).exists()), default=-1)
    return any(step > whole for step in steps.values())


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
