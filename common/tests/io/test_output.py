"""Commands whose standard streams are closed, full, or read by nobody."""

import os
import subprocess
import sys

import pytest

from common.io.output import ENDED
from common.tests.backend_checks.lost_ranks import ROOT
from common.training.run_log import read_log
from common.weights.checkpoint import latest_checkpoint, load_checkpoint
from data.synthetic import make_synthetic

STEPS = 7
TRAIN = """
import sys
from common.backend import Backend
from common.commands.main import main
from common.tests.numpy_trainer import NumpyTrainer

Backend.create_trainer = lambda self, config, classes: NumpyTrainer(config, classes)
sys.exit(main(Backend("numpy"), sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("data") / "faces", classes=4, images=4, size=16, pairs=10)


@pytest.fixture
def unread():
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def shell(redirected: str, *command: object, **options) -> subprocess.CompletedProcess[str]:
    """A command of Python's, with what a shell puts after it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    line = ["bash", "-c", f'"$@" {redirected}', "bash", sys.executable, *map(str, command)]
    return subprocess.run(line, env=environment, text=True, timeout=120, **options)


@pytest.mark.parametrize("redirected", ["2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1", ">&$UNREAD 2>&1"])
def test_training_goes_on(faces, tmp_path, unread, redirected):
    arguments = [
        "train", "lfw-small", "--data.root", faces, "--out", tmp_path / "run", "--data.evaluate-on", "synthetic",
        "--data.workers", 1, "--data.image-size", 16, "--optimiser.batch-size", 8, "--optimiser.max-steps", STEPS,
        "--log-every", 1, "--save-every", 3,
    ]  # fmt: skip
    done = shell(redirected.replace("$UNREAD", str(unread)), "-c", TRAIN, *arguments, pass_fds=[unread])
    assert done.returncode == 0
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["step"] for record in records if record["kind"] == "train"] == list(range(1, STEPS + 1))
    assert load_checkpoint(latest_checkpoint(tmp_path / "run")).step == STEPS
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("module", ["common", "data", "benchmarks", "parity_tests", "parity_tests.compare", "backend"])
def test_other_commands_end_quietly(unread, module):
    command = ["-c", TRAIN] if module == "backend" else ["-m", module]
    done = shell("", *command, "--help", stdout=unread, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, ""), "it was done before its output was written"


def test_a_command_ends_with_its_reader(unread):
    """What it prints, 200 kB, does not fit into its buffer."""
    code = "from common.io import output; output.prepare(); [print('x' * 99) for _ in range(2000)]; open('/no/file')"
    done = shell("", "-c", code, stdout=unread, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (ENDED, "")


def test_a_full_disk_is_an_error_where_what_is_printed_is_the_result():
    done = shell(">/dev/full", "-m", "common", "--help", capture_output=True)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr
