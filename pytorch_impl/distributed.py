"""Ranks that train one model together, on PyTorch's own engine: NCCL or Gloo between them.

The backbone is data parallel, the prototypes of SFace are in shards of classes (`class_shards.py`).
"""

import atexit
import contextlib
import datetime
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn

from common.ranks import GO_ON, LOST_ANOTHER, Alone, LostRank, Ranks, end_though_waiting
from pytorch_impl.launcher import FOLDER, PATIENCE, is_launched

BEATS = 10  # news of a rank in that time
_ENDED = b"ended"  # the last news of a rank


@functools.cache
def join(device: torch.device) -> Ranks:
    """The group that this process was started in; `Alone` if it was not started in one."""
    return Group(device) if is_launched() and int(os.environ["WORLD_SIZE"]) > 1 else Alone()


def local_device(device: torch.device) -> torch.device:
    """The device of this rank among those of its host."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if is_launched() and device.type == "cuda" else device


class Group:
    """All processes of a job (`common.ranks.Ranks`); those that do not answer are named."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            # what waits longer than that has been found by the heartbeat, but for a rank that computes for hours
            timeout=datetime.timedelta(seconds=max(3600, PATIENCE)),
            rank=rank,
            world_size=count,
            store=dist.FileStore(f"{os.environ[FOLDER]}/store", count) if FOLDER in os.environ else None,
        )
        self.rank, self.count = rank, count
        self._on_host = dist.new_group(backend="gloo") if device.type == "cuda" else None
        end_though_waiting()
        heartbeat = _Heartbeat(self.rank, self.count)
        heartbeat.start()
        atexit.register(dist.destroy_process_group)
        atexit.register(heartbeat.stop)

    def total(self, number: int) -> int:
        tensor = torch.tensor(int(number))
        try:
            dist.all_reduce(tensor, group=self._on_host)
        except RuntimeError as error:
            raise LostRank(f"rank {self.rank} waited for another rank in vain ({error})") from None
        return int(tensor)

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise over the ranks."""
        dist.all_reduce(tensor)
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """Elementwise over the ranks."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def share(self, length: int) -> slice:
        """The contiguous part of `length` things that is this rank's; parts differ by one at most."""
        return _share(length, self.rank, self.count)

    def joined(self, part: Tensor, length: int) -> Tensor | None:
        """The whole of which each rank has its share along the first dimension; on the host, for rank 0 alone."""
        whole = torch.empty(length, *part.shape[1:], dtype=part.dtype) if self.rank == 0 else None
        for rank in range(self.count):
            place = _share(length, rank, self.count)
            piece = part.detach().contiguous()
            if rank != self.rank:
                piece = torch.empty(place.stop - place.start, *part.shape[1:], dtype=part.dtype, device=part.device)
            dist.broadcast(piece, rank)
            if whole is not None:
                whole[place] = piece.cpu()
        return whole


class _SyncBatchNorm(nn.BatchNorm2d):
    """Mean and variance over all ranks, of (N, C) and (N, C, H, W). PyTorch's own works on a GPU alone."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count, samples = dist.get_world_size(), x.numel() // x.shape[1] * dist.get_world_size()
        mean = differentiable.all_reduce(x.mean(dims)) / count
        centered = x - mean.view(shape)
        variance = differentiable.all_reduce(centered.square().mean(dims)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(variance.to(self.running_var) * (samples / (samples - 1)), self.momentum)
        out = centered * torch.rsqrt(variance + self.eps).view(shape)
        return out * self.weight.view(shape) + self.bias.view(shape)


def synchronise_batch_norm(backbone: nn.Module, device: torch.device) -> None:
    """Have each BatchNorm of the backbone see the whole batch: PyTorch's own on a GPU, ours on a CPU."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
        return
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.__class__ = _SyncBatchNorm


def _share(length: int, rank: int, count: int) -> slice:
    return slice(length * rank // count, length * (rank + 1) // count)


class _Heartbeat(threading.Thread):
    """Gives news of this rank to the job's store, and ends this process when another one gives none.

    A thread, because a process that waits in a collective operation cannot look elsewhere.
    """

    def __init__(self, rank: int, count: int, end: Callable[[int], Any] = os._exit) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._rank, self._count, self._end = rank, count, end
        self._store = dist.PrefixStore("heartbeat", dist.distributed_c10d._get_default_store().clone())
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        heard: dict[int, tuple[bytes, float]] = {}
        beat = 0
        while not self._stopping.wait(PATIENCE / BEATS if beat else 0):
            try:
                self._store.set(str(self._rank), f"{beat} on {os.uname().nodename}, process {os.getpid()},")
                lost = self._lost(heard)
            except (dist.DistError, RuntimeError) as error:
                lost = f"the launcher of rank {self._rank} is gone ({str(error).splitlines()[0]})"
            if lost and not self._stopping.is_set():
                print(f"error: {lost}; {GO_ON}", file=sys.stderr, flush=True)
                self._end(LOST_ANOTHER)
            beat += 1
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._store.set(str(self._rank), _ENDED.decode())

    def _lost(self, heard: dict[int, tuple[bytes, float]]) -> str | None:
        """Which rank has been silent for too long; `heard`: news of each, and when they came."""
        for rank in range(self._count):
            news = self._store.get(str(rank)) if self._store.check([str(rank)]) else b"0"
            if heard.get(rank, (b"", 0.0))[0] != news:
                heard[rank] = news, time.monotonic()
            elif news != _ENDED and time.monotonic() - heard[rank][1] > PATIENCE:
                return f"rank {rank} {news.decode().partition(' ')[2]} has given no news for {PATIENCE:g} s"
        return None
