"""Jobs that lose a rank, by the user's command."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from common.tests.backend_checks.lost_ranks import *  # noqa: F403
from common.tests.backend_checks.lost_ranks import Limits, pid_of_rank, wait_for_checkpoint

LIMITS = Limits(started=120, ended=45)  # its launcher gives the other ranks 30 s


@pytest.fixture
def limits():
    return LIMITS


def test_a_rank_that_hangs_is_named(job, tmp_path):
    process = job(SFACE_RANK_TIMEOUT="5")
    wait_for_checkpoint(process, tmp_path / "run", LIMITS.started)
    pid = pid_of_rank(process, 1)
    os.kill(pid, signal.SIGSTOP)
    named = re.compile(r"error: rank 1 on \S+, process \d+, has given no news for 5 s")
    end = time.monotonic() + 60
    while not named.search(process.said()):
        assert time.monotonic() < end, process.said()
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)  # the launcher asks it to end for 30 s, then does that
    assert process.wait(timeout=60) == 2


def test_ranks_do_not_outlive_their_launcher(job, tmp_path):
    process = job(SFACE_RANK_TIMEOUT="5")
    wait_for_checkpoint(process, tmp_path / "run", LIMITS.started)
    pids = [pid_of_rank(process, rank) for rank in (0, 1)]
    process.kill()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
