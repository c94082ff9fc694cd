"""A run killed (SIGKILL) at random moments, many times, ends with the same bits as one that was never killed."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from common.backend import Backend
from common.training.run_log import read_log
from common.weights.checkpoint import latest_checkpoint, load_checkpoint
from data.synthetic import make_synthetic
from parity_tests.tests.forks import Fork, Forks

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("SFACE_KILLS", "5"))  # each starts a framework; more make a longer trial


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("data") / "faces", classes=6, images=16, size=32, pairs=20)


def start(forks: Forks, backend: str, faces: Path, out: Path) -> Fork:
    """Training with dropout and flips. It saves every second step, so many kills hit a checkpoint being written."""
    arguments = (
        f"train lfw-small --data.root {faces} --data.evaluate-on synthetic --data.image-size 32 --data.no-raw-pixels "
        f"--model.backbone iresnet_small --model.embedding-size 16 --optimiser.batch-size 8 --optimiser.epochs 4 "
        f"--optimiser.milestones 2 --optimiser.learning-rate 0.02 "
        f"--log-every 1 --evaluate-every 25 --save-every 2 --device cpu --out {out}"
    )
    return forks.start(backend, ROOT, Backend(backend).package, arguments.split())


def finish(process: Fork) -> None:
    assert process.wait() == 0, process.errors()


def logged(folder: Path) -> list[dict]:
    """All records without their times."""
    clock = ("images_per_second", "seconds")
    return [{k: v for k, v in r.items() if k not in clock} for r in read_log(folder / "log.jsonl")]


def steps_logged(folder: Path) -> int:
    path = folder / "log.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def assert_same_run(one: Path, other: Path) -> None:
    assert logged(one) == logged(other)
    last, expected = load_checkpoint(latest_checkpoint(one)), load_checkpoint(latest_checkpoint(other))
    assert last.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        assert last.arrays[name].tobytes() == array.tobytes(), name
    progress, expected_progress = dict(last.state["progress"]), dict(expected.state["progress"])
    assert progress.pop("seconds") > 0
    assert expected_progress.pop("seconds") > 0
    assert progress == expected_progress


@pytest.fixture(scope="module")
def unbroken(forks, backend, faces, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    finish(start(forks, backend, faces, folder))
    assert len([r for r in logged(folder) if r["kind"] == "train"]) == 48
    return folder


def test_killed_many_times(forks, backend, faces, unbroken, tmp_path):
    """A run that comes to its end between the kills is compared, and the next ones meet another run."""
    moments = random.Random(2205)
    resumed_at, runs = [], 0
    while len(resumed_at) < KILLS:
        out = tmp_path / str(runs)
        before = steps_logged(out)
        process = start(forks, backend, faces, out)
        deadline = time.monotonic() + 120
        while process.poll() is None and steps_logged(out) <= before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.25))  # to hit a step, an evaluation or a checkpoint
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            latest = latest_checkpoint(out)
            resumed_at.append(0 if latest is None else load_checkpoint(latest).step)
        else:
            finish(process)
            assert_same_run(out, unbroken)
            runs += 1
    assert len(set(resumed_at)) >= KILLS // 3, f"the kills must hit different moments, got {resumed_at}"
    finish(start(forks, backend, faces, tmp_path / str(runs)))
    assert_same_run(tmp_path / str(runs), unbroken)


def test_ctrl_c_then_on(forks, backend, faces, unbroken, tmp_path):
    process = start(forks, backend, faces, tmp_path)
    while process.poll() is None and steps_logged(tmp_path) < 11:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "start it again to go on" in process.errors()
    finish(start(forks, backend, faces, tmp_path))
    assert_same_run(tmp_path, unbroken)


def test_the_report_of_a_run_is_whole(backend, unbroken):
    page = (unbroken / "report.html").read_text()
    assert "synthetic" in page
    environment = json.loads((unbroken / "environment.json").read_text())
    assert environment["backend"]["name"] == backend
