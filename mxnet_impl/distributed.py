"""Several devices, or processes, that train one model, on MXNet's own engine: its kvstore.

GPUs of one host share a process (`Devices`), processes a parameter server (`Group`). Backbone and prototypes are data
parallel: each rank pushes its gradients, a server adds them up, each pulls the sums, and all make the same update. A
job is a scheduler, a server and the ranks, which `launch` starts on one host. By hand,
on several hosts, each process has MXNet's variables DMLC_PS_ROOT_URI and DMLC_PS_ROOT_PORT (of the scheduler),
DMLC_NUM_SERVER, DMLC_NUM_WORKER, and DMLC_ROLE: scheduler and server run `python -c "import mxnet_impl"`, a worker
`python -m mxnet_impl train ...` with its DMLC_RANK.
"""

import atexit
import contextlib
import ctypes
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import gluon, nd
from mxnet.base import _LIB, check_call
from mxnet.gluon import nn
from mxnet.ndarray import NDArray

from common.ranks import (
    TIME_TO_SAVE,
    Alone,
    LostRank,
    Ranks,
    Stopped,
    end_though_waiting,
    share_of_cores,
    stop_signals,
    stopped_or_lost,
)
from mxnet_impl import runtime
from mxnet_impl.backbones._layers import SyncBatchNorm

PATIENCE = float(os.environ.get("SFACE_RANK_TIMEOUT", 600))  # seconds without news after which a rank counts as lost
BEATS = 10  # news of a rank in that time, at least

_LAUNCHER, _NEWS = "SFACE_LAUNCHER", "SFACE_NEWS"  # its process id; a folder with a file of each rank, touched as news
_TIME_TO_SPEAK = 2  # seconds that ranks have to end after one of them failed
_GO_ON = "start the same command again to go on from the last checkpoint"
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


def join() -> Ranks:
    """The group that this process was started in; `Alone` if it was not started in one."""
    return Group() if is_launched() and int(os.environ["DMLC_NUM_WORKER"]) > 1 else Alone()


def local_devices(device: str, count: int) -> list[mx.Context]:
    """The devices of this process: one, or `count` GPUs if no launcher gave it a part of the job.

    Raises:
        ValueError: there are fewer GPUs.
    """
    first = runtime.resolve_device(device)
    if count == 1 or is_launched() or first.device_type == "cpu":
        return [first]
    return [runtime.resolve_device(f"cuda:{number}") for number in range(count)]


class Devices:
    """Several devices of one process, on MXNet's kvstore for that: `device`, on GPUs, or `local`."""

    def __init__(self, devices: list[mx.Context]) -> None:
        self._store = mx.kv.create("local" if devices[0].device_type == "cpu" else "device")
        self._names: set[str] = set()
        self._count = len(devices)

    def average(self, tensors: Mapping[str, Sequence[NDArray]]) -> None:
        """Of each name's tensors, one a device: over the devices, elementwise, in place, without waiting."""
        for name, of_devices in tensors.items():
            if name not in self._names:
                self._store.init(name, of_devices[0])
                self._names.add(name)
            self._store.push(name, list(of_devices))
            self._store.pull(name, out=list(of_devices))
            for tensor in of_devices:
                tensor /= self._count


class Group:
    """All ranks of a job (`common.ranks.Ranks`), one object a process.

    Raises:
        ValueError: the processes were not given the ranks 0, 1 and so on, each once.
    """

    def __init__(self) -> None:
        end_though_waiting()
        if _LAUNCHER in os.environ:
            threading.Thread(target=_give_news, name="news", daemon=True).start()
        with _not_forever():
            self._store = mx.kv.create("dist_sync")
        # the kvstore's own ranks follow addresses and ports; it sets DMLC_RANK to them, but not in Python's copy
        self.rank, self.count = int(os.environ.get("DMLC_RANK", self._store.rank)), self._store.num_workers
        self._names: set[str] = set()
        if _LAUNCHER in os.environ:  # which ends the server; who leaves, maybe with an error, need not wait for others
            check_call(_LIB.MXKVStoreSetBarrierBeforeExit(self._store.handle, ctypes.c_int(0)))
        atexit.register(self._leave)
        self._check_ranks()

    def total(self, number: int) -> int:
        array = nd.array([number], dtype=np.float64)
        with _not_forever():
            self.sum({"total": array})
            return int(array.asscalar())

    def sum(self, tensors: Mapping[str, NDArray]) -> None:
        """Elementwise over the ranks, in place, without waiting for float32; a name has one shape and dtype throughout.

        The server may add float64 up in float32: it never sets the flag that it asks. So float64 travels as three
        float32 parts in a place of its rank's own, and is added up here; the range is that of float32.
        """
        sent = {name: self._parts(t) if t.dtype == np.float64 else t for name, t in tensors.items()}
        new = [name for name in sent if name not in self._names]
        if new:
            self._store.init(new, [nd.zeros_like(sent[name]) for name in new])
            self._names.update(new)
        for name, tensor in sent.items():
            self._store.push(name, tensor)
            self._store.pull(name, out=tensor)
        for name, tensor in tensors.items():
            if tensor is not sent[name]:
                high, middle, low = sent[name].asnumpy().astype(np.float64)
                tensor[:] = (high + (middle + low)).sum(axis=0)  # in this order each rank's number is exact

    def average(self, name: str, tensor: NDArray) -> NDArray:
        """Elementwise over the ranks, in place, as `sum` is."""
        self.sum({name: tensor})
        tensor /= self.count
        return tensor

    def _check_ranks(self) -> None:
        taken = nd.array(np.arange(self.count) == self.rank, dtype=np.float32)
        with _not_forever():
            self.sum({"ranks": taken})
            found = taken.asnumpy()
        if (found != 1).any():
            wrong = ", ".join(map(str, np.flatnonzero(found != 1)))
            wanted = f"expected each of 0 to {self.count - 1} of one process"
            raise ValueError(f"DMLC_RANK: {wanted}, got {self.rank} here, and {wrong} of none or of several")

    def _parts(self, tensor: NDArray) -> NDArray:
        rest = tensor.asnumpy()
        parts = np.zeros((3, self.count, *rest.shape), np.float32)
        with np.errstate(all="ignore"):
            for part in parts:
                part[self.rank] = rest
                rest = rest - part[self.rank]
        return nd.array(parts)

    def _leave(self) -> None:
        with _not_forever():  # by hand, all ranks leave together, and then the servers end
            del self._store


def synchronise_batch_norm(backbone: gluon.HybridBlock, group: Group) -> None:
    """Have each BatchNorm of the backbone see the whole batch; the backbone is not to be hybridised then."""
    numbers = itertools.count()

    def convert(layer: gluon.Block) -> None:
        if isinstance(layer, nn.BatchNorm):
            name = f"batch_norm.{next(numbers)}"
            layer.__class__ = SyncBatchNorm
            layer.average = lambda what, tensor: group.average(f"{name}.{what}", tensor)
            weight = layer.gamma.data()
            # a new name waits for all ranks; so none is new in the backward pass, which has a thread of its own
            layer.average("forward", nd.zeros_like(weight))
            layer.average("backward", nd.stack(weight, weight))

    backbone.apply(convert)


def _give_news() -> None:
    """From a thread, because a process that waits in the kvstore cannot; ends this process with its launcher."""
    while os.getppid() == int(os.environ[_LAUNCHER]):
        Path(os.environ[_NEWS], os.environ["DMLC_RANK"]).touch()
        time.sleep(min(1, PATIENCE / BEATS))
    os._exit(1)


@contextlib.contextmanager
def _not_forever() -> Iterator[None]:
    """Around what waits for other ranks: ends this process when it waits in vain, as MXNet then cannot go on."""

    def give_up() -> None:
        print(f"error: waited for another rank in vain; {_GO_ON}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(max(3600, PATIENCE), give_up)  # a rank may compute for long; the launcher looks closer
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()


def _run(devices: int, command: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_signals(signal.default_int_handler))
        news = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sface-ranks-")))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        host = {"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": str(port), "DMLC_NODE_HOST": "127.0.0.1"}
        host["DMLC_USE_KUBERNETES"] = "0"  # 1 would have the scheduler listen on all interfaces
        job = {"DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": str(devices), _LAUNCHER: str(os.getpid()), _NEWS: str(news)}
        environment = os.environ | host | job
        if environment["OMP_NUM_THREADS"] == share_of_cores(1):  # all of them is what runtime.py sets, not the user
            environment["OMP_NUM_THREADS"] = share_of_cores(devices)

        def start(command: list[str], **role: str) -> subprocess.Popen:
            process = subprocess.Popen(command, env=environment | role, start_new_session=True)  # without our Ctrl-C
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
            raise LostRank(f"the scheduler or the server of the kvstore ended; {_GO_ON}")
        for rank in range(len(ranks)):
            path = news / str(rank)
            beat = path.stat().st_mtime_ns if path.exists() else 0
            if beat != heard[rank][0]:
                heard[rank] = beat, time.monotonic()
            patience = PATIENCE if beat else max(3600, PATIENCE)  # before it joins it may read much data
            if running[rank] and time.monotonic() - heard[rank][1] > patience:
                name = f"rank {rank} on {os.uname().nodename}, process {ranks[rank].pid},"
                raise LostRank(f"{name} has given no news for {PATIENCE:g} s; {_GO_ON}")
        time.sleep(0.1)
    if failed:
        raise stopped_or_lost(failed)
    if any(running):
        raise KeyboardInterrupt
