"""Jobs that lose a rank, by the user's command: they end, say why, and the same command goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.material import write_training_set
from common.checkpoint import step_of
from common.tests.saving import is_saving, kill_while_saving, last_step
from common.training import latest_checkpoint
from jittor_impl import distributed
from jittor_impl.tests.test_distributed import CLASSES, ROOT, SIZE  # which skips where there is no mpirun


@pytest.fixture
def job(tmp_path):
    """Starts `train --devices 2` on a small set; ends what is left of it."""
    write_training_set(tmp_path / "set", 48, CLASSES, SIZE)
    started = []

    def start(**environment: str) -> subprocess.Popen:
        arguments = ["--data.root", "set", "--data.image-size", str(SIZE), "--data.evaluate-on", "--data.no-raw-pixels"]
        arguments += ["--model.embedding-size", "16", "--optimiser.batch-size", "12", "--device", "cpu"]
        arguments += ["--devices", "2", "--out", "run", "--log-every", "1", "--save-every", "2"]
        arguments += ["--optimiser.max-steps", "100000", "--optimiser.epochs", "100000"]
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "jittor_impl", "train", "lfw-small", *arguments],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.terminate()  # Jittor ends this process, too, when a child of it is killed
        process.wait(60)


def rank_of(process: subprocess.Popen, rank: int) -> int:
    """The process id of a rank of a job."""
    children = Path("/proc", str(process.pid), "task", str(process.pid), "children").read_text().split()
    return next(ranks[rank] for ranks in map(distributed._ranks, map(int, children)) if ranks)


def wait_for_checkpoint(process: subprocess.Popen, run: Path, newer_than: int = -1) -> None:
    while process.poll() is None:
        latest = latest_checkpoint(run)
        if latest is not None and step_of(latest) > newer_than:
            return
        time.sleep(0.05)
    raise AssertionError(process.stderr.read())


def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(job, tmp_path):
    """Killed are rank 1 in training, and rank 0 while it saves; Ctrl-C, too, loses no step."""
    run = tmp_path / "run"
    for rank in (1, 0):
        step = last_step(run)
        process = job()
        wait_for_checkpoint(process, run, step)
        pid = rank_of(process, rank)
        if rank == 0:
            kill_while_saving(pid, run)
        else:
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < 20
        assert process.returncode == 2
        assert f"error: rank {rank} was ended by SIGKILL; start the same command again to go on" in errors
    assert is_saving(run)

    again = job()
    wait_for_checkpoint(again, run, last_step(run))
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 130, errors
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, last_step(run) + 1))


def test_a_rank_that_hangs_is_named(job, tmp_path):
    process = job(SFACE_RANK_TIMEOUT="5")
    wait_for_checkpoint(process, tmp_path / "run")
    os.kill(rank_of(process, 1), signal.SIGSTOP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(r"error: rank 1 on \S+, process \d+, has not computed for 5 s; start the same command", errors)


def test_a_rank_that_fails_does_not_wait_for_the_others(job, tmp_path):
    """All images of rank 1 but the first are damaged."""
    content = bytearray((tmp_path / "set" / "train.rec").read_bytes())
    middle = len(content) // 2
    content[middle:] = bytes(len(content) - middle)
    (tmp_path / "set" / "train.rec").write_bytes(content)
    process = job()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "could not go on; it says why above" in errors
