"""Several devices, or processes, that train one model, on MXNet's own engine: its kvstore.

GPUs of one host share a process (`Devices`), processes a parameter server (`Group`). Backbone and prototypes are data
parallel: each rank pushes its gradients, a server adds them up, each pulls the sums, and all make the same update.
"""

import atexit
import contextlib
import ctypes
import itertools
import os
import sys
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

from common.ranks import GO_ON, Alone, Ranks, end_though_waiting
from mxnet_impl import runtime
from mxnet_impl.backbones._layers import SyncBatchNorm
from mxnet_impl.launcher import FOLDER, PATIENCE, is_launched

BEATS = 10  # news of a rank in that time, at least


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
        if FOLDER in os.environ:
            threading.Thread(target=_give_news, name="news", daemon=True).start()
        with _not_forever():
            self._store = mx.kv.create("dist_sync")
        # the kvstore's own ranks follow addresses and ports; it sets DMLC_RANK to them, but not in Python's copy
        self.rank, self.count = int(os.environ.get("DMLC_RANK", self._store.rank)), self._store.num_workers
        self._names: set[str] = set()
        if FOLDER in os.environ:  # which ends the server; who leaves, maybe with an error, need not wait for others
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
    """From a thread, because a process that waits in the kvstore cannot."""
    while True:
        Path(os.environ[FOLDER], os.environ["DMLC_RANK"]).touch()
        time.sleep(min(1, PATIENCE / BEATS))


@contextlib.contextmanager
def _not_forever() -> Iterator[None]:
    """Around what waits for other ranks: ends this process when it waits in vain, as MXNet then cannot go on."""

    def give_up() -> None:
        print(f"error: waited for another rank in vain; {GO_ON}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(max(3600, PATIENCE), give_up)  # a rank may compute for long; the launcher looks closer
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
