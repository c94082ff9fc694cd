"""Start the processes of a job on one host, and end them together: a scheduler, a server and the ranks.

By hand, on several hosts, each process has MXNet's variables DMLC_PS_ROOT_URI and DMLC_PS_ROOT_PORT (of the scheduler),
DMLC_NUM_SERVER, DMLC_NUM_WORKER, and DMLC_ROLE: scheduler and server run `python -c "import mxnet_impl"`, a worker
`python -m mxnet_impl train ...` with its DMLC_RANK.
"""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.ranks import (
    GO_ON,
    TIME_TO_SAVE,
    LostRank,
    Stopped,
    ends_with_launcher,
    share_of_cores,
    stop_signals,
    stopped_or_lost,
)
from mxnet_impl import runtime

PATIENCE = float(os.environ.get("SFACE_RANK_TIMEOUT", 600))  # seconds without news after which a rank counts as lost
FOLDER = "SFACE_RANKS"  # of the job alone; each rank has a file there, and touches it as news

_TIME_TO_SPEAK = 2  # seconds that ranks have to end after one of them failed
_SERVE = ["-P", str(Path(__file__).with_name("kvstore_server.py"))]


def is_launched() -> bool:
    """Whether `launch` started this process, or somebody gave it its role by hand."""
    return os.environ.get("DMLC_ROLE") == "worker"


def needs_launcher(device: str) -> bool:
    """Whether several devices of that name are to have a process each, which `launch` has yet to start.

    GPUs of one host share a process: their gradients need not pass through a server.
    """
    return not is_launched() and runtime.resolve_device(device).device_type == "cpu"


def launch(devices: int, arguments: list[str]) -> None:
    """Run `python -m mxnet_impl ARGUMENTS` in `devices` processes on this host.

    Raises:
        Stopped: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was saved.
        KeyboardInterrupt: a second Ctrl-C, or ranks did not stop in 30 seconds; nothing was saved.
        LostRank: a process ended early or hangs; named.
    """
    _run(devices, [sys.executable, "-m", __package__, *arguments])


def _run(devices: int, command: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_signals(signal.default_int_handler))
        news = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sface-ranks-")))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        host = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port), "DMLC_NODE_HOST": "127.0.0.1"}
        host["DMLC_USE_KUBERNETES"] = "0"  # 1 would have the scheduler listen on all interfaces
        job = {"DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": str(devices), FOLDER: str(news)}
        environment = os.environ | host | job
        if environment["OMP_NUM_THREADS"] == share_of_cores(1):  # all of them is what runtime.py sets, not the user
            environment["OMP_NUM_THREADS"] = share_of_cores(devices)

        def start(command: list[str], **role: str) -> subprocess.Popen:
            process = subprocess.Popen(
                command,
                env=environment | role,
                start_new_session=True,  # without our Ctrl-C
                preexec_fn=ends_with_launcher(),
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        helpers = [start([sys.executable, *_SERVE], DMLC_ROLE=role) for role in ("scheduler", "server")]
        ranks = [start(command, DMLC_ROLE="worker", DMLC_RANK=str(rank)) for rank in range(devices)]
        try:
            _watch(ranks, helpers, news, math.inf)
        except KeyboardInterrupt:
            for process in ranks:
                process.terminate()
            _watch(ranks, helpers, news, time.monotonic() + TIME_TO_SAVE)


def _watch(ranks: list[subprocess.Popen], helpers: list[subprocess.Popen], news: Path, end: float) -> None:
    """Wait until all ranks have ended, or till `end`; raises as `launch`, and then some may still run."""
    heard = [(0, time.monotonic())] * len(ranks)
    while True:
        running = [process.poll() is None for process in ranks]
        failed = {rank: process.returncode for rank, process in enumerate(ranks) if process.returncode}
        if failed:
            stopped = isinstance(stopped_or_lost(failed), Stopped)
            end = min(end, time.monotonic() + (TIME_TO_SAVE if stopped else _TIME_TO_SPEAK))
        if not any(running) or time.monotonic() > end:
            break
        if any(process.poll() is not None for process in helpers):
            raise LostRank(f"the scheduler or the server of the kvstore ended; {GO_ON}")
        for rank in range(len(ranks)):
            path = news / str(rank)
            beat = path.stat().st_mtime_ns if path.exists() else 0
            if beat != heard[rank][0]:
                heard[rank] = beat, time.monotonic()
            patience = PATIENCE if beat else max(3600, PATIENCE)  # before it joins it may read much data
            if running[rank] and time.monotonic() - heard[rank][1] > patience:
                name = f"rank {rank} on {os.uname().nodename}, process {ranks[rank].pid},"
                raise LostRank(f"{name} has given no news for {PATIENCE:g} s; {GO_ON}")
        time.sleep(0.1)
    if failed:
        raise stopped_or_lost(failed)
    if any(running):
        raise KeyboardInterrupt
