"""The memory that this process used and that is free, on the host and on NVIDIA GPUs (Linux)."""

import contextlib
import ctypes
import os
import re
import resource
import subprocess
from pathlib import Path
from typing import NamedTuple

from common.io.programs import output_of

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

_MALLOC_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
# malloc.h: M_MMAP_MAX 0: no block has its own mapping; M_TRIM_THRESHOLD -1: never shrink; M_TOP_PAD: bytes to grow by
_MALLOC_OPTIONS = ((-4, 0), (-1, -1), (-2, 2**28))


class GpuMemory(NamedTuple):
    """Bytes of one GPU."""

    used: int
    total: int


class OutOfMemory(MemoryError):
    """The message says what was lost, and what to do."""


_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_LACK = re.compile(
    r"out of memory|(can't|cannot|failed to|unable to) alloc|bad_alloc"
    r"|could not create a memory object",  # oneDNN, for Jittor's convolutions on a CPU
    re.IGNORECASE,
)


def lack_of_memory(error: BaseException) -> str | None:
    """The line in which an error of Python, NumPy or a framework says that memory ran out; None: it does not say so.

    PyTorch, MXNet and Jittor raise a RuntimeError.

    >>> lack_of_memory(RuntimeError("Traceback:\\nMXNetError: Failed to allocate CPU Memory"))
    'MXNetError: Failed to allocate CPU Memory'
    """
    lines = _COLOUR.sub("", str(error)).strip().splitlines()
    if isinstance(error, MemoryError):
        return lines[0] if lines else "MemoryError"
    return next((line.strip() for line in lines if _LACK.search(line)), None)


def keep_freed_memory() -> bool:
    """Make glibc keep freed large blocks and reuse them, in this process from now on.

    By default glibc returns them to the system and takes them anew in every training step; the system then zeroes each
    page. Settings of the user (MALLOC_*_, GLIBC_TUNABLES with malloc) stay.

    Returns:
        True if it was set; False if the user has settings, or the C library is not glibc.
    """
    if any(name in os.environ for name in _MALLOC_VARIABLES) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # other C libraries have no mallopt, or one without effect
        mallopt = library.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all(mallopt(option, value) == 1 for option, value in _MALLOC_OPTIONS)


def give_back_freed_memory() -> None:
    """Return freed blocks to the system, so that they do not count as used memory; glibc only."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_host_peak() -> None:
    """Reset `host_peak`. If the kernel does not allow that, it counts from the start of the process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def host_peak() -> int:
    """Measure the most bytes that were resident at one time, since the last reset or the start."""
    peak = _kib("/proc/self/status", "VmHWM")
    return peak if peak is not None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def host_available() -> int | None:
    """Measure the bytes that are available without swapping, within the container's limit; None: unknown."""
    known = [value for value in (_kib("/proc/meminfo", "MemAvailable"), _cgroup_limit()) if value is not None]
    return min(known, default=None)


def gpu_memory() -> list[GpuMemory]:
    """Measure the memory of each GPU in the order of nvidia-smi; empty if that is missing or gives no figures (MIG)."""
    command = ["nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = output_of(command)
        mebibytes = [[int(number) for number in line.split(",")] for line in listed.splitlines()]
        return [GpuMemory(used * 2**20, total * 2**20) for used, total in mebibytes]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def _kib(path: str, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path(path).read_text("utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _cgroup_limit() -> int | None:
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            return int(Path(path).read_text("ascii"))
    return None
