"""Settings that MXNet needs before it is imported; its device, precision, threads and random seed."""

import os
import sys
from typing import Any

import numpy as np

from mxnet_impl import kvstore_server

if os.environ.get("DMLC_ROLE") in kvstore_server.ROLES:  # before MXNet's own does it, which is not safe
    sys.exit(kvstore_server.serve())

np.bool = bool  # type: ignore[attr-defined]  # MXNet 1.9.1 uses the name that NumPy 1.24 removed (apache/mxnet #21165)

# By default MXNet uses half of the processors, as if each were one of two hyperthreads.
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

# MXNet imports these, where they are installed, for a class of models and a calibration that we do not use. That takes
# as long as the rest. Who needs them imports them first.
_unneeded = {"sklearn.base", "scipy.stats"} - sys.modules.keys()
sys.modules.update(dict.fromkeys(_unneeded))  # type: ignore[arg-type]
import mxnet as mx  # noqa: E402

for _name in _unneeded:
    del sys.modules[_name]

from common.backend import how_to_install  # noqa: E402

PRECISIONS = {"fp32": "float32", "fp64": "float64"}


def resolve_device(name: str) -> mx.Context:
    """The device that a configuration names.

    Args:
        name: "cpu", "cuda", "cuda:N", or "auto": the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: an unknown name, or no such device; says how to get it.
    """
    count = mx.context.num_gpus() if mx.runtime.Features().is_enabled("CUDA") else 0
    if name == "auto":
        return mx.gpu(0) if count else mx.cpu()
    if name == "cpu":
        return mx.cpu()
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if not mx.runtime.Features().is_enabled("CUDA"):
        raise ValueError(
            f"device: {name} asked for, but this MXNet ({mx.__version__}) is built for the CPU only; "
            f"install the CUDA build with pip uninstall mxnet; {how_to_install('mxnet-cuda')}"
        )
    if int(number or 0) >= count:
        raise ValueError(
            f"device: {name} asked for, but MXNet sees {count} CUDA devices (driver, CUDA_VISIBLE_DEVICES)"
        )
    return mx.gpu(int(number or 0))


def describe(device: mx.Context) -> dict[str, Any]:
    """Version, device and threads as JSON values, for `info` and for the record of a run."""
    features = mx.runtime.Features()
    return {
        "name": "mxnet",
        "version": mx.__version__,
        "device": str(device),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "cpus": os.cpu_count(),
        "onednn": features.is_enabled("MKLDNN"),
        "cuda": features.is_enabled("CUDA"),
    }


def seed_everything(seed: int) -> None:
    """Seed dropout on all devices. Initial weights, sample order and flips have seeds of their own in `common`."""
    mx.random.seed(seed % 2**31)
