"""Device, precision and random seed of PyTorch."""

import os
from typing import Any

import torch

from common.backend import how_to_install
from common.io import memory

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

memory.keep_freed_memory()  # without it, a MobileFaceNet's step takes 1.4 to 1.75 times as long on a virtual machine


def resolve_device(name: str) -> torch.device:
    """The device that a configuration names. Turns off TF32 in the whole process, so that fp32 is float32.

    Args:
        name: "cpu", "cuda", "cuda:N", or "auto": the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: an unknown name, or no such device; says how to get it.
    """
    torch.backends.cudnn.allow_tf32 = False  # cuDNN would round the inputs of float32 convolutions to 10 bits
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cpu":
        return device
    if not torch.backends.cuda.is_built():
        raise ValueError(
            f"device: {name} asked for, but this PyTorch ({torch.__version__}) is built for the CPU only; "
            f"install the CUDA build with pip uninstall torch; {how_to_install('pytorch')}"
        )
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise ValueError(
            f"device: {name} asked for, but PyTorch sees {count} CUDA devices (driver, CUDA_VISIBLE_DEVICES)"
        )
    return torch.device("cuda", device.index or 0)


def describe(device: torch.device) -> dict[str, Any]:
    """Version, device and threads as JSON values, for `info` and for the record of a run."""
    facts: dict[str, Any] = {
        "name": "pytorch",
        "version": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
    }
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def seed_everything(seed: int) -> None:
    """Seed dropout on all devices. Initial weights, sample order and flips have seeds of their own in `common`."""
    torch.manual_seed(seed)
