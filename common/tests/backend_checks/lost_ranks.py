"""Jobs of two ranks, by the user's command, that lose one: they end, say why, and the same command goes on.

For packages that start their ranks themselves. Besides `backend` they provide the fixture `limits`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.material import write_training_set
from common.tests.listening import processes_of
from common.tests.saving import is_saving, kill_while_saving, last_step
from common.weights.checkpoint import latest_checkpoint, step_of

ROOT = Path(__file__).resolve().parents[3]
SIZE = 16
OPTIONS = {
    "data.root": "set", "data.image-size": SIZE, "model.embedding-size": 16, "optimiser.batch-size": 12,
    "optimiser.max-steps": 100000, "optimiser.epochs": 100000, "device": "cpu", "devices": 2,
    "log-every": 1, "save-every": 2,
}  # fmt: skip


class Limits(NamedTuple):
    """Seconds on a busy machine, after which a job is taken to hang."""

    started: float  # until its first checkpoint
    ended: float  # from the loss of a rank to its end


class Job(subprocess.Popen):
    """A command whose errors go to a file: a compiler that outlives its rank would keep a pipe open."""

    def __init__(self, command: list[str], folder: Path, name: str, **environment: str) -> None:
        self._said = folder / name
        with self._said.open("w") as stream:
            super().__init__(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
                stderr=stream,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def said(self) -> str:
        return self._said.read_text()


@pytest.fixture
def job(backend, tmp_path):
    """Starts `train --devices 2` on a small set; ends what is left of it."""
    write_training_set(tmp_path / "set", 48, 7, SIZE)
    started = []

    def start(out: str = "run", **environment: str) -> Job:
        options = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
        command = [sys.executable, "-m", backend.package, "train", "lfw-small", *options, "--out", out]
        command += ["--data.no-raw-pixels", "--data.evaluate-on"]
        started.append(Job(command, tmp_path, f"errors-{len(started)}.txt", **environment))
        return started[-1]

    yield start
    for process in started:
        process.terminate()  # so that it ends its ranks, wherever these are
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_checkpoint(process: Job, run: Path, within: float, newer_than: int = -1) -> None:
    end = time.monotonic() + within
    while process.poll() is None:
        latest = latest_checkpoint(run)
        if latest is not None and step_of(latest) > newer_than:
            return
        assert time.monotonic() < end, f"no checkpoint in {within} s"
        time.sleep(0.05)
    raise AssertionError(process.said())


def pid_of_rank(process: Job, rank: int) -> int:
    """The process of a rank, by the variable that each launcher gives it."""
    variables = {f"{name}={rank}".encode() for name in ("RANK", "DMLC_RANK", "OMPI_COMM_WORLD_RANK")}
    for pid in processes_of(process.pid):
        with contextlib.suppress(OSError):  # it has ended
            if variables & set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                return pid
    raise AssertionError(f"rank {rank} has no process: {process.said()}")


def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(job, limits, tmp_path):
    """Killed are rank 1 in training, and rank 0 while it saves; Ctrl-C, too, loses no step."""
    run = tmp_path / "run"
    for rank in (1, 0):
        step = last_step(run)
        process = job()
        wait_for_checkpoint(process, run, limits.started, step)
        pid = pid_of_rank(process, rank)
        if rank == 0:
            kill_while_saving(pid, run)
        else:
            os.kill(pid, signal.SIGKILL)
        assert process.wait(limits.ended) == 2, process.said()
        assert f"error: rank {rank} was ended by SIGKILL; start the same command again to go on" in process.said()
    assert is_saving(run)

    again = job()
    wait_for_checkpoint(again, run, limits.started, last_step(run))
    again.send_signal(signal.SIGINT)
    assert again.wait(60) == 130, again.said()
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, last_step(run) + 1))
