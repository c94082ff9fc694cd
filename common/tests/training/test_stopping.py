"""A signal to stop does not end what waits inside of a framework."""

import ctypes
import os
import signal
import subprocess
import sys

import pytest

from common.ranks import STOP_SIGNALS
from common.training.stopping import stop_signals

HOLD = """
import fcntl, os, sys, time
fcntl.lockf(file := open(sys.argv[1], "w"), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(0.5)
os.kill(os.getppid(), int(sys.argv[2]))
time.sleep(0.5)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_wait_for_a_lock_goes_on(tmp_path, number):
    """As Jittor waits while another process compiles; it would end with "Something wrong", for want of the lock."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    path, libc = tmp_path / "lock", ctypes.CDLL(None, use_errno=True)
    with stop_signals() as asked, path.open("w") as file:
        holds = subprocess.Popen([sys.executable, "-c", HOLD, path, str(int(number))], stdout=subprocess.PIPE)
        assert holds.stdout.readline() == b"held\n"
        assert libc.lockf(file.fileno(), os.F_LOCK, 0) == 0, os.strerror(ctypes.get_errno())
        assert asked.is_set()
        holds.communicate()
    signal.signal(signal.SIGHUP, before)
