"""Several ranks compute what one computes on the joined batch, over MPI; and a job that loses one ends and goes on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common import config as configuration
from common.ranks import LostRank, Stopped
from common.tests.backend_checks.trainer import WITHOUT_DROPOUT, configured
from jittor_impl import launcher
from jittor_impl.tests import mpirun
from jittor_impl.trainer import _dropout_seed

ROOT = Path(__file__).resolve().parents[2]
CLASSES, SIZE, BATCH = 7, 16, 8  # small, as Jittor's convolutions in float64 are slow
PLAIN = configuration.HeadConfig(form="plain")  # automatic differentiation, up to sums over both ranks
DATA = configuration.DataConfig(Path("unused"), image_size=SIZE)

mpirun.skip_without()


def trained(folder: Path, ranks: int, jobs: dict[str, dict]) -> dict[str, dict[str, np.ndarray]]:
    """What each job left; ranks 0: without mpirun."""
    written = [{"classes": CLASSES, "out": str(folder / f"{name}.npz"), **job} for name, job in jobs.items()]
    path = folder / f"jobs-{ranks}.json"
    path.write_text(json.dumps(written))
    command, environment = launcher._mpirun(ranks) if ranks else ([sys.executable, "-m"], dict(os.environ))
    command += ["common.tests.rank_job", "jittor", str(path)]
    environment["OMP_NUM_THREADS"] = "1"  # the order of oneDNN's sums depends on it
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
        "parts": {"config": config(**double, accumulate=2), "steps": [0, 6], "middle": 4},
        "clipped": {"config": config(**double, accumulate=4, clip_norm=0.5), "steps": [0, 3]},
        "whole": {"config": config(**double), "steps": [0, 6]},
        "plain": {"config": config(**double, head=PLAIN), "steps": [0, 3]},
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
        "parts": {"config": config(**double), "steps": [0, 6], "middle": 4},
        "clipped": {"config": config(**double, accumulate=2, clip_norm=0.5), "steps": [0, 3]},
        "whole": {"config": config(**double, sync_batch_norm=True), "steps": [0, 6]},
        "plain": {"config": config(**double, sync_batch_norm=True, head=PLAIN), "steps": [0, 3]},
        "float32": {"config": config(), "steps": [0, 3]},
        "resumed": {"config": config(**double), "steps": [4, 6], "load": str(folder / "start.npz")},
    }
    return trained(folder, 2, jobs)


def test_six_steps_of_two_ranks_are_those_of_one_that_accumulates_two_parts(alone, two):
    """Weights, momentum and metrics. Measured 0: both add the same two parts."""
    assert_close(two["parts"], alone["parts"], 1e-12, RUNNING)
    assert np.abs(alone["parts"]["metrics.loss"]).max() > 1


def test_the_mean_gradient_is_clipped(alone, two):
    """Measured 4e-12: one adds four parts in turn, the other two sums of two."""
    assert_close(two["clipped"], alone["clipped"], 1e-10, RUNNING)


def test_six_steps_with_batch_norm_over_both_ranks_are_those_of_one(alone, two):
    """Measured 4e-12: rounding, where an array is zero but for it."""
    assert_close(two["whole"], alone["whole"], 1e-10)
    assert_close(two["plain"], alone["plain"], 1e-10)


def test_in_float32_a_few_steps_agree(alone, two):
    """The mean of two is exact but for one rounding. Measured 5e-8, of metrics, which ranks average in double."""
    assert_close(two["float32"], alone["float32"], 1e-6, RUNNING)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path, alone, two):
    rest = {name: array[4:] for name, array in alone["parts"].items() if name.startswith("metrics.")}
    expected = alone["parts"] | rest
    assert_close(two["resumed"], expected, 1e-12, RUNNING)
    np.savez(tmp_path / "start.npz", **two["parts-middle"])
    job = {"config": config(precision="fp64", accumulate=2), "steps": [4, 6], "load": str(tmp_path / "start.npz")}
    assert_close(trained(tmp_path, 0, {"one": job})["one"], expected, 1e-12, RUNNING)


def test_each_rank_draws_its_own_dropout():
    assert len({_dropout_seed(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in (0, 1, 2)}) == 12


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (137, LostRank("rank 1 was ended by SIGKILL")),
        (2, LostRank("rank 1 could not go on; it says why above")),
        (130, Stopped()),
    ],
)
def test_what_mpirun_says_of_the_first_rank_to_end(status, error, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", f"import sys; sys.exit({status})"])
    ended.wait()
    lost = launcher._Job(ended, 2, tmp_path)
    lost._first_lost = 1
    assert type(lost.failure()) is type(error)
    assert str(error) in str(lost.failure())


def test_ranks_that_were_asked_to_stop_and_compiled_on(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(137)"])
    ended.wait()
    job = launcher._Job(ended, 2, tmp_path)
    job.stop()
    assert isinstance(job.failure(), Stopped)
    assert "cannot while Jittor compiles; start it again" in str(job.failure())


def test_a_signal_to_all_processes_leaves_ranks_time_to_save(tmp_path, monkeypatch):
    """As a cluster sends it. The launcher may see that a rank was told before it is told itself."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    job, sent = launcher._Job(ended, 2, tmp_path), []
    monkeypatch.setattr(job, "_send", sent.append)
    (tmp_path / "0").write_bytes(bytes([signal.SIGTERM]))
    job.watch()
    job.stop()
    assert sent == [signal.SIGTERM]
    job.stop()
    assert sent == [signal.SIGTERM, signal.SIGKILL]


def test_without_mpirun_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(FileNotFoundError, match="devices: several need Open MPI's mpirun; pip install -r requirements"):
        launcher._mpirun(2)
