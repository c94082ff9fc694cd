"""Jobs that lose a rank, by the user's command."""

import os
import re
import signal
from pathlib import Path

import pytest

from common.tests.backend_checks.lost_ranks import *  # noqa: F403
from common.tests.backend_checks.lost_ranks import Job, Limits, pid_of_rank, wait_for_checkpoint
from jittor_impl.tests import mpirun

mpirun.skip_without()

LIMITS = Limits(started=600, ended=20)  # the first job compiles its operators


@pytest.fixture
def limits():
    return LIMITS


def started_in_five_seconds(job, run: Path) -> Job:
    """A job past its first checkpoint; while another test compiles, ranks wait for Jittor's lock as if they hung."""
    for _ in range(20):
        process = job(SFACE_RANK_TIMEOUT="5")
        try:
            wait_for_checkpoint(process, run, LIMITS.started)
        except AssertionError as ended:
            if "has not computed for 5 s" not in str(ended):
                raise
        else:
            return process
    raise AssertionError("no start of 20 took less than 5 s")


def test_a_rank_that_hangs_is_named(job, tmp_path):
    process = started_in_five_seconds(job, tmp_path / "run")
    os.kill(pid_of_rank(process, 1), signal.SIGSTOP)
    assert process.wait(60) == 2, process.said()
    named = r"error: rank 1 on \S+, process \d+, has not computed for 5 s; start the same command"
    assert re.search(named, process.said())


def test_a_rank_that_fails_does_not_wait_for_the_others(job, tmp_path):
    """All images of rank 1 but the first are damaged."""
    content = bytearray((tmp_path / "set" / "train.rec").read_bytes())
    middle = len(content) // 2
    content[middle:] = bytes(len(content) - middle)
    (tmp_path / "set" / "train.rec").write_bytes(content)
    process = job()
    assert process.wait(120) == 2, process.said()
    assert "could not go on; it says why above" in process.said()
