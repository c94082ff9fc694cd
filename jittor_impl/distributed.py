"""Ranks that train one model together, on Jittor's own engine: MPI runs between them.

Backbone and prototypes are data parallel: each rank computes a share of the batch, and gradients are averaged.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jittor as jt
from jittor import Var, nn

from common.ranks import BAD_INPUT, INTERRUPTED, Alone, Ranks
from jittor_impl.backbones._layers import BatchNorm, SyncBatchNorm, _sum_of_all
from jittor_impl.launcher import FOLDER, is_launched


def join() -> Ranks:
    """The group that this process was started in; `Alone` if it was not started in one."""
    return Group() if is_launched() and jt.world_size > 1 else Alone()


def local_device(device: str) -> str:
    """The name of this rank's device among those of its host."""
    if not is_launched() or device == "cpu" or not jt.has_cuda:
        return device
    return f"cuda:{os.environ['OMPI_COMM_WORLD_LOCAL_RANK']}"


def end_with(command: Callable[[], int]) -> NoReturn:
    """End this process with the exit status that `command` returns.

    After a failure it ends at once. MPI's end waits for all ranks: one that failed would wait for those that wait for
    it. And Jittor's own end may wait for ever for a thread that a failed compilation left.
    """
    if sys.stderr is not None:
        faulthandler.enable()  # too little memory is a segmentation fault in Jittor
    try:
        status = command()
    except Exception as error:
        if "Run cmd failed" in str(error):  # Jittor's, of an operator; Ctrl-C ends the compiler too
            print(
                "error: the compiler of one of Jittor's operators was stopped, or says above why it failed; start the "
                "same command again to go on",
                file=sys.stderr,
            )
            status = BAD_INPUT
        elif is_launched():
            traceback.print_exc()
            status = 1
        else:
            raise
    if status not in (0, INTERRUPTED):
        sys.stdout.flush()
        sys.stderr.flush()
        for compiler in multiprocessing.active_children():
            compiler.kill()
        os._exit(status)
    sys.exit(status)


class Group:
    """All processes of an mpirun job (`common.ranks.Ranks`); when one is lost, mpirun or `launch` ends the others."""

    def __init__(self) -> None:
        self.rank, self.count = jt.rank, jt.world_size
        if FOLDER in os.environ:  # Python's handler waits while Jittor waits, but Python writes there at once
            told = os.open(Path(os.environ[FOLDER], str(self.rank)), os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o600)
            signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        jt.in_mpi = False  # Jittor's optimiser would average the gradients of each part of a batch, beside the trainer

    def total(self, number: int) -> int:
        return int(self.sum(jt.array(float(number), "float64")).item())

    def sum(self, tensor: Var) -> Var:
        """Elementwise over the ranks, at once."""
        return _sum_of_all(tensor)


def synchronise_batch_norm(backbone: nn.Module) -> None:
    """Have each BatchNorm of the backbone see the whole batch."""
    for module in backbone.modules():
        if isinstance(module, BatchNorm):
            module.__class__ = SyncBatchNorm
