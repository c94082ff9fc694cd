"""Start a process for each device of one host, and end them together. torchrun by hand starts those of several hosts.

This file does without PyTorch: the launcher, which only waits, starts sooner and takes less memory.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time

from common.ranks import TIME_TO_SAVE, Stopped, ends_with_launcher, share_of_cores, stop_signals, stopped_or_lost

PATIENCE = float(os.environ.get("SFACE_RANK_TIMEOUT", 600))  # seconds without news after which a rank counts as lost
FOLDER = "SFACE_RANKS"  # of the job alone; ranks find each other by a file there


def is_launched() -> bool:
    """Whether torchrun, or `launch`, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def needs_launcher(device: str) -> bool:
    """Whether several devices of that name are to have a process each, which `launch` has yet to start."""
    return not is_launched()


def launch(devices: int, arguments: list[str], *, module: str = __package__) -> None:
    """Run `python -m MODULE ARGUMENTS` in `devices` processes on this host; nothing listens beyond loopback.

    Raises:
        Stopped: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was saved.
        KeyboardInterrupt: a second Ctrl-C, or ranks did not stop in 30 seconds; nothing was saved.
        LostRank: a process ended early; named.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_signals(signal.default_int_handler))
        # torchrun's rendezvous listens on all interfaces and unpickles what it is sent; this folder is the user's alone
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sface-ranks-"))
        environment = {
            "OMP_NUM_THREADS": share_of_cores(devices),
            **os.environ,
            **{"WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices), FOLDER: folder},
            **dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo"),
        }

        def start(rank: int) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # without our Ctrl-C
                preexec_fn=ends_with_launcher(),
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        ranks = [start(rank) for rank in range(devices)]
        try:
            _watch(ranks)
        except KeyboardInterrupt:
            for process in ranks:
                process.terminate()
            _watch(ranks, time.monotonic() + TIME_TO_SAVE)


def _watch(ranks: list[subprocess.Popen[bytes]], end: float = math.inf) -> None:
    """Wait until all ranks have ended, or till `end`; raises as `launch`, and then some may still run."""
    failed: dict[int, int] = {}
    while True:
        running = [process.poll() is None for process in ranks]
        if isinstance(stopped_or_lost(failed), Stopped):  # who ends after a lost rank does so for want of it
            failed = {rank: process.returncode for rank, process in enumerate(ranks) if process.returncode}
            if failed:
                end = min(end, time.monotonic() + TIME_TO_SAVE)
            if not isinstance(stopped_or_lost(failed), Stopped):
                for process in ranks:
                    process.terminate()
        if not any(running) or time.monotonic() > end:
            break
        time.sleep(0.05)
    if failed:
        raise stopped_or_lost(failed)
    if any(running):
        raise KeyboardInterrupt
