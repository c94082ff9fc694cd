"""What the ranks of all engines share."""

import signal
import subprocess
import sys

import pytest

from common.ranks import LOST_ANOTHER

PROGRAM = """
import os, signal, sys, time
from common.ranks import end_though_waiting
number = int(sys.argv[1])
signal.signal(number, lambda *_: None)
end_though_waiting()
os.kill(os.getpid(), number)
time.sleep(1)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, LOST_ANOTHER), (signal.SIGINT, LOST_ANOTHER), (signal.SIGUSR1, 0)]
)
def test_a_rank_ends_a_while_after_a_signal_to_stop_and_after_no_other(monkeypatch, number, status):
    monkeypatch.setenv("SFACE_STOP_TIMEOUT", "0.2")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(int(number))], stderr=subprocess.PIPE, text=True)
    assert done.returncode == status, done.stderr
    assert ("told to stop 0.3 s ago" in done.stderr) == bool(status)
