"""Ranks: the processes that train one model together, one a device."""

import ctypes
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
FAILED = 1  # exit status of a command that printed what the machine lacks: memory, or a disk that takes more
BAD_INPUT = 2  # exit status of a command that printed what is wrong with its input
LOST_ANOTHER = 75  # exit status of a rank whose wait for another one failed
GO_ON = "start the same command again to go on from the last checkpoint"
TIME_TO_SAVE = float(os.environ.get("SFACE_STOP_TIMEOUT", 30))  # seconds that ranks have to save when they are stopped


class Stopped(Exception):
    """The user stopped the run; a checkpoint of its last step is saved."""


class Ranks(Protocol):
    """The processes of a run, seen from one of them."""

    rank: int  # 0 writes logs and checkpoints, and evaluates
    count: int

    def total(self, number: int) -> int:
        """Sum the numbers of all ranks. Every rank must call it at the same step; it waits for the others.

        Raises:
            LostRank: another rank ended or hangs; the message names it.
        """


class LostRank(OSError):
    """A process of the run ended or hangs. The message names it and says what to do."""


class Alone:
    """A run of one process."""

    rank, count = 0, 1

    def total(self, number: int) -> int:
        return number


@contextmanager
def stop_signals(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Call `handler` at Ctrl-C, SIGTERM and SIGHUP. Where SIGHUP is ignored, as under nohup, it stays ignored.

    An ignored Ctrl-C does not: a shell starts background jobs so, and whoever sends them SIGINT means it.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in STOP_SIGNALS if number != signal.SIGHUP or not ignored]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def ends_with_launcher(number: int = signal.SIGKILL) -> Callable[[], Any]:
    """A `preexec_fn` of `subprocess.Popen`: the process gets that signal when this one ends, however it ends."""
    return functools.partial(ctypes.CDLL(None).prctl, 1, number)  # PR_SET_PDEATHSIG


def end_though_waiting() -> None:
    """From now on, end this process if it still runs a while after a signal to stop, longer than its launcher waits.

    While a rank waits for another one, inside of its engine, Python cannot handle the signal; but Python writes its
    number to this socket at once.
    """
    heard, written = socket.socketpair()
    written.setblocking(False)
    signal.set_wakeup_fd(written.detach(), warn_on_full_buffer=False)

    def wait() -> None:
        while heard.recv(1)[0] not in STOP_SIGNALS:  # a user's program may handle others
            pass
        time.sleep(1.5 * TIME_TO_SAVE)
        waits = "still waits for another rank, or saves (SFACE_STOP_TIMEOUT gives it longer)"
        try:
            print(
                f"error: told to stop {1.5 * TIME_TO_SAVE:g} s ago, and {waits}; {GO_ON}", file=sys.stderr, flush=True
            )
        finally:  # also where nobody reads
            os._exit(LOST_ANOTHER)

    threading.Thread(target=wait, name="end though waiting", daemon=True).start()


def share_of_cores(processes: int) -> str:
    """Divide the cores of this host among processes; returns a value for OMP_NUM_THREADS."""
    return str(max(1, len(os.sched_getaffinity(0)) // processes))


def stopped_or_lost(statuses: Mapping[int, int]) -> Exception:
    """Make the exception for a job whose processes ended.

    Args:
        statuses: exit status by rank; negative: ended by that signal.

    Returns:
        Stopped if the user ended all of them, else LostRank with the rank that failed first.
    """
    asked_to = (INTERRUPTED, *(-number for number in STOP_SIGNALS))
    told = {rank: status for rank, status in statuses.items() if status not in asked_to}
    if not told:
        return Stopped("stopped; start it again to go on")
    rank, status = min(told.items(), key=lambda item: (item[1] == LOST_ANOTHER, item))
    if status in (FAILED, BAD_INPUT):  # Python, too, ends with FAILED after a traceback
        return LostRank(f"rank {rank} could not go on; it says why above")
    if status == LOST_ANOTHER:
        how = "lost another one, named above"
    else:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return LostRank(f"rank {rank} {how}; {GO_ON}")
