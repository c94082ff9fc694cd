"""Jobs that lose a rank, by the user's command: they end, say why, and the same command goes on."""

import contextlib
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

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32
LONG = ("--optimiser.max-steps", "100000", "--optimiser.epochs", "100000", "--devices", "2")


@pytest.fixture
def job(tmp_path):
    """Starts `train --devices 2` on a small set; ends what is left of it."""
    write_training_set(tmp_path / "set", 48, 7, SIZE)
    started = []

    def start(*options: str, **environment: str) -> subprocess.Popen:
        arguments = ["--data.root", "set", "--data.image-size", str(SIZE), "--data.evaluate-on", "--model.backbone"]
        arguments += ["mobilefacenet", "--model.embedding-size", "16", "--optimiser.batch-size", "12", "--out", "run"]
        arguments += ["--data.no-raw-pixels", "--log-every", "1", "--save-every", "2", "--device", "cpu", *options]
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "pytorch_impl", "train", "lfw-small", *arguments],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def ranks_of(process: subprocess.Popen) -> list[int]:
    """Process ids of the ranks, in their order."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)$", (path / "status").read_text(), re.MULTILINE)
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [entry[5:] for entry in environment if entry.startswith(b"RANK=")]
        if parent and int(parent[1]) == process.pid and rank:
            found[int(rank[0])] = int(path.name)
    return [found[rank] for rank in sorted(found)]


def wait_for_checkpoint(run: Path, newer_than: int = -1) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        latest = latest_checkpoint(run)
        if latest is not None and step_of(latest) > newer_than:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint within two minutes")


def test_a_killed_rank_ends_the_job_and_the_same_command_goes_on(job, tmp_path):
    """Killed are rank 1 in training, and rank 0 while it saves."""
    run = tmp_path / "run"
    for rank in (1, 0):
        step = last_step(run)
        process = job(*LONG)
        wait_for_checkpoint(run, step)
        pid = ranks_of(process)[rank]
        if rank == 0:
            kill_while_saving(pid, run)
        else:
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < 45
        assert process.returncode == 2
        assert f"error: rank {rank} was ended by SIGKILL; start the same command again to go on" in errors
    assert is_saving(run)

    again = job(*LONG)
    wait_for_checkpoint(run, last_step(run))
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 130, errors
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def test_a_rank_that_hangs_is_named(job, tmp_path):
    process = job(*LONG, SFACE_RANK_TIMEOUT="5")
    wait_for_checkpoint(tmp_path / "run")
    pid = ranks_of(process)[1]
    os.kill(pid, signal.SIGSTOP)
    named = re.compile(r"error: rank 1 on \S+, process \d+, has given no news for 5 s")
    assert any(named.search(line) for line in process.stderr)
    os.kill(pid, signal.SIGKILL)  # the launcher asks it to end for 30 s, then does that
    assert process.wait(timeout=60) == 2


def test_ranks_do_not_outlive_their_launcher(job, tmp_path):
    process = job(*LONG, SFACE_RANK_TIMEOUT="5")
    wait_for_checkpoint(tmp_path / "run")
    pids = ranks_of(process)
    process.kill()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
