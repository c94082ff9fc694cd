"""Several ranks compute what one computes on the joined batch, over MPI; and a job that loses one ends and goes on."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.material import write_training_set
from common import config as configuration
from common.checkpoint import step_of
from common.ranks import LostRank, Stopped
from common.tests.backend_checks.trainer import WITHOUT_DROPOUT, configured
from common.tests.saving import is_saving, kill_while_saving, last_step
from common.training import latest_checkpoint
from jittor_impl import distributed
from jittor_impl.trainer import _dropout_seed

ROOT = Path(__file__).resolve().parents[2]
CLASSES, SIZE, BATCH = 7, 16, 8  # small, as Jittor's convolutions in float64 are slow
DATA = configuration.DataConfig(Path("unused"), image_size=SIZE)

try:
    distributed._mpirun(2)
except FileNotFoundError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def trained(folder: Path, ranks: int, jobs: dict[str, dict]) -> dict[str, dict[str, np.ndarray]]:
    """What each job left; ranks 0: without mpirun."""
    written = [{"classes": CLASSES, "out": str(folder / f"{name}.npz"), **job} for name, job in jobs.items()]
    path = folder / f"jobs-{ranks}.json"
    path.write_text(json.dumps(written))
    command, environment = distributed._mpirun(ranks) if ranks else ([sys.executable, "-m"], dict(os.environ))
    command += ["common.tests.rank_job", "jittor_impl", str(path)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    left = [*jobs, *(f"{name}-middle" for name, job in jobs.items() if "middle" in job)]
    return {name: dict(np.load(folder / f"{name}.npz")) for name in left}


def config(**options) -> dict:
    small = dataclasses.replace(configured(batch_size=BATCH, model=WITHOUT_DROPOUT, **options), data=DATA)
    return configuration.to_json(small)


def assert_close(found: dict, expected: dict, tolerance: float, leave_out: tuple[str, ...] = ()) -> None:
    """All floating-point arrays, relative to the largest value; below 1e-3, as where a bias has no effect, to that."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if not name.endswith(leave_out):
            error = np.abs(found[name] - array).max() / max(np.abs(array).max(), 1e-3)
            assert error <= tolerance, (name, error)


# Of the running statistics of parts, rank 0's are those of its own parts alone.
RUNNING = ("running_mean", "running_var")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One rank: in parts and whole, in float64 and in float32."""
    double = {"precision": "fp64"}
    jobs = {
        "parts": {"config": config(**double, accumulate=2), "steps": [0, 20], "middle": 16},
        "clipped": {"config": config(**double, accumulate=4, clip_norm=0.5), "steps": [0, 3]},
        "whole": {"config": config(**double), "steps": [0, 3]},
        "float32": {"config": config(accumulate=2), "steps": [0, 3]},
    }
    return trained(tmp_path_factory.mktemp("alone"), 0, jobs)


@pytest.fixture(scope="module")
def two(tmp_path_factory, alone):
    """The same on two ranks."""
    folder = tmp_path_factory.mktemp("two")
    np.savez(folder / "start.npz", **alone["parts-middle"])
    double = {"precision": "fp64"}
    jobs = {
        "parts": {"config": config(**double), "steps": [0, 20], "middle": 16},
        "clipped": {"config": config(**double, accumulate=2, clip_norm=0.5), "steps": [0, 3]},
        "whole": {"config": config(**double, sync_batch_norm=True), "steps": [0, 3]},
        "float32": {"config": config(), "steps": [0, 3]},
        "resumed": {"config": config(**double), "steps": [16, 20], "load": str(folder / "start.npz")},
    }
    return trained(folder, 2, jobs)


def test_twenty_steps_of_two_ranks_are_those_of_one_that_accumulates_two_parts(alone, two):
    """Weights, momentum and metrics."""
    assert_close(two["parts"], alone["parts"], 1e-9, RUNNING)
    assert np.abs(alone["parts"]["metrics.loss"]).max() > 1


def test_the_mean_gradient_is_clipped(alone, two):
    assert_close(two["clipped"], alone["clipped"], 1e-9, RUNNING)


def test_with_batch_norm_over_both_ranks_all_is_as_on_one(alone, two):
    assert_close(two["whole"], alone["whole"], 1e-9)


def test_in_float32_a_few_steps_agree(alone, two):
    """The mean of two is exact but for one rounding. Measured 5e-8, of metrics, which ranks average in double."""
    assert_close(two["float32"], alone["float32"], 1e-5, RUNNING)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, alone, two):
    rest = {name: array[16:] for name, array in alone["parts"].items() if name.startswith("metrics.")}
    expected = alone["parts"] | rest
    assert_close(two["resumed"], expected, 1e-9, RUNNING)
    np.savez(tmp_path / "start.npz", **two["parts-middle"])
    job = {"config": config(precision="fp64", accumulate=2), "steps": [16, 20], "load": str(tmp_path / "start.npz")}
    assert_close(trained(tmp_path, 0, {"one": job})["one"], expected, 1e-9, RUNNING)


def test_each_rank_draws_its_own_dropout():
    assert len({_dropout_seed(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1, 2)}) == 12


# Jobs that lose a rank, by the user's command


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


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (137, LostRank("rank 1 was ended by SIGKILL")),
        (2, LostRank("rank 1 could not go on; it says why above")),
        (130, Stopped()),
    ],
)
def test_what_mpirun_says_of_the_first_rank_to_end(status, error):
    ended = subprocess.Popen([sys.executable, "-c", f"import sys; sys.exit({status})"])
    ended.wait()
    lost = distributed._Job(ended, 2)
    lost._first_lost = 1
    assert type(lost.failure()) is type(error)
    assert str(error) in str(lost.failure())


def test_without_mpirun_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(FileNotFoundError, match="devices: several need Open MPI's mpirun; pip install -r requirements"):
        distributed._mpirun(2)
