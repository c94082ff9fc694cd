"""Ranks of a job that stop, hang or die: the job ends, says why, and the same command goes on."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.commands.main import main
from common.ranks import LostRank
from common.tests.saving import is_saving, kill_while_saving, last_step
from common.weights import checkpoint
from common.weights.checkpoint import latest_checkpoint
from data.synthetic import make_synthetic
from mxnet_impl import launcher
from mxnet_impl.tests.conftest import BACKEND
from mxnet_impl.tests.test_distributed import ROOT, errors

LENGTH = 16  # of the command's run: enough that it is not at its end when it is to be stopped
STARTED = 180  # seconds in which a job must have done its first steps: 6, but 39 where 10 processes share 2 cores
ENDED = 20  # seconds in which a job must end


class Processes:
    """A launcher and the job that it starts: the scheduler, the server, and the ranks "0" and "1"."""

    def __init__(self, command: list[str], folder: Path, patience: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SFACE_RANK_TIMEOUT": patience}
        self._output = folder / "output.txt"
        with self._output.open("w") as stream:
            self.launcher = subprocess.Popen(
                [sys.executable, *command], env=environment, stdout=stream, stderr=subprocess.STDOUT
            )

    def output(self) -> str:
        return self._output.read_text()

    def found(self) -> dict[str, int]:
        """Process ids of the launcher's children, by role, or of ranks by rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                entries = (folder / "environ").read_bytes().split(b"\0") if parent == self.launcher.pid else []
            except OSError:  # it has ended
                continue
            variables = dict(entry.decode().split("=", 1) for entry in entries if b"=" in entry)
            if "DMLC_ROLE" in variables:
                found[variables.get("DMLC_RANK", variables["DMLC_ROLE"])] = int(folder.name)
        return found

    def after(self, holds: Callable[[], bool], end: Callable[[int], None], target: str) -> tuple[int, str]:
        """End the target, a process id, when something holds; the launcher's exit status, and all that was written."""
        try:
            wait_for(lambda: holds() or self.launcher.poll() is not None, STARTED)
            processes = self.found() | {"launcher": self.launcher.pid}
            assert set(processes) == {"launcher", "scheduler", "server", "0", "1"}, self.output()
            end(processes[target])
            status = self.launcher.wait(ENDED)
            wait_for(lambda: not any(map(is_alive, processes.values())), ENDED)
            return status, self.output()
        finally:
            self.launcher.kill()
            self.launcher.wait()


def send(signal_number: int) -> Callable[[int], None]:
    return lambda process: os.kill(process, signal_number)


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Both ranks write at one moment, and print, where PYTHONUNBUFFERED is set, writes each word by itself: "sumsum 2 2".
JOIN = "import os, time; from mxnet_impl.distributed import join; "
IDLE = JOIN + r"os.write(1, b'sum %d\n' % join().total(1)); time.sleep(99)"
LAUNCH = (
    "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # these tests may run under nohup
    "from mxnet_impl import launcher; launcher._run(2, [sys.executable, '-c', sys.argv[1]])"
)


@pytest.mark.parametrize(
    ("signal_number", "target", "status", "message"),
    [
        (signal.SIGSTOP, "1", 1, r"LostRank: rank 1 on \S+, process \d+, has given no news for 2 s; start the same"),
        (signal.SIGKILL, "launcher", -9, "sum 2"),
        (signal.SIGHUP, "launcher", 1, "Stopped: stopped; start it again to go on"),
    ],
)
def test_who_hangs_is_named_and_nobody_outlives_the_launcher(tmp_path, signal_number, target, status, message):
    job = Processes(["-c", LAUNCH, IDLE], tmp_path, patience="2")
    found, output = job.after(lambda: job.output().count("sum 2") == 2, send(signal_number), target)
    assert found == status, output
    assert re.search(message, output), output


def test_a_port_in_use_ends_the_job(monkeypatch):
    """Another program may take the port before the scheduler does."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(socket, "create_server", lambda *_: contextlib.nullcontext(taken))
        with pytest.raises(LostRank, match="the scheduler or the server of the kvstore ended; start the same command"):
            launcher._run(2, [sys.executable, "-c", JOIN + "join()"])


def test_a_server_that_ends_ends_the_job(monkeypatch):
    monkeypatch.setattr(launcher, "_SERVE", ["-c", "raise SystemExit(1)"])
    with pytest.raises(LostRank, match="the scheduler or the server of the kvstore ended; start the same command"):
        launcher._run(2, [sys.executable, "-c", "import time; time.sleep(99)"])


def steps_of(log: Path) -> list[int]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line)["step"] for line in lines if '"train"' in line and line.endswith("}")]


def test_a_run_that_was_stopped_and_killed_ends_as_one_rank_does(tmp_path):
    """Ctrl-C loses no step, kill -9 of a rank those since the last checkpoint; and the loop hands out the shares.

    Killed are rank 1 in training, and rank 0 while it saves.
    """
    root = make_synthetic(tmp_path / "faces", classes=5, images=4, size=32, pairs=2)
    arguments = [
        "train", "lfw-small", "--data.root", str(root), "--data.evaluate-on", "none", "--data.workers", "1",
        "--data.image-size", "32", "--model.backbone", "iresnet_small", "--model.embedding-size", "16",
        "--model.dropout", "0", "--optimiser.batch-size", "8", "--optimiser.max-steps", str(LENGTH), "--device", "cpu",
        "--precision", "fp64", "--log-every", "1", "--save-every", "2", "--optimiser.learning-rate", "0.002",
    ]  # fmt: skip
    out = tmp_path / "two"
    log, command = out / "log.jsonl", ["-m", "mxnet_impl", *arguments, "--devices", "2", "--out", str(out)]

    job = Processes(command, tmp_path, patience="600")
    status, output = job.after(lambda: len(steps_of(log)) > 0, send(signal.SIGINT), "launcher")
    assert status == 130, output
    assert "stopped; start it again to go on" in output
    stopped = steps_of(log)[-1]
    assert stopped < LENGTH
    assert last_step(out) == stopped

    for rank, end in (("1", send(signal.SIGKILL)), ("0", lambda process: kill_while_saving(process, out))):
        saved = last_step(out)
        job = Processes(command, tmp_path, patience="600")
        status, output = job.after(lambda saved=saved: checkpoint.step_of(latest_checkpoint(out)) > saved, end, rank)
        assert status == 2, output
        assert f"error: rank {rank} was ended by SIGKILL; start the same command again to go on" in output
        assert steps_of(log)[-1] < LENGTH
    assert is_saving(out)
    assert last_step(out) > saved

    job = Processes(command, tmp_path, patience="600")
    assert job.launcher.wait(STARTED) == 0, job.output()
    assert steps_of(log) == list(range(1, LENGTH + 1))
    assert main(BACKEND, [*arguments, "--optimiser.accumulate", "2", "--out", str(tmp_path / "one")]) == 0
    found, expected = (checkpoint.load_checkpoint(latest_checkpoint(tmp_path / name)) for name in ("two", "one"))
    assert found.step == expected.step == LENGTH
    wrong = errors(found.arrays, expected.arrays)
    assert max(wrong.values()) < 1e-9, wrong
