"""Memory of this process, and of GPUs by a stand-in for nvidia-smi."""

import mmap
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from common.io import memory
from common.io.memory import GpuMemory

MIB = 2**20


def test_host_peak_follows_what_is_resident():
    memory.reset_host_peak()
    before = memory.host_peak()
    with mmap.mmap(-1, 64 * MIB) as block:  # a mapping: the allocator may keep freed memory
        np.frombuffer(block, np.uint8)[::4096] = 1
        with_block = memory.host_peak()
        assert 60 * MIB < with_block - before < 80 * MIB
    assert memory.host_peak() > with_block - MIB  # the kernel counts pages in lots
    memory.reset_host_peak()
    assert memory.host_peak() < with_block - 50 * MIB


def test_a_container_bounds_what_is_available(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(tmp_path / "nothing"), str(limit)))
    free = memory.host_available()
    assert free > 100 * MIB
    limit.write_text("max\n")
    assert memory.host_available() > 100 * MIB
    limit.write_text(f"{5 * MIB}\n")
    assert memory.host_available() == 5 * MIB


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 100, 8192; echo 3, 16384", [GpuMemory(100 * MIB, 8192 * MIB), GpuMemory(3 * MIB, 16384 * MIB)]),
        ("echo '[N/A], [N/A]'", []),
        ("echo 100, 8192; exit 9", []),
    ],
)
def test_gpu_memory(tmp_path, monkeypatch, script, expected):
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert memory.gpu_memory() == expected


def test_without_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert memory.gpu_memory() == []


FAULTS = """
import resource, sys
import numpy as np
from common.io.memory import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "keep" else None)
for round in range(60):
    if round == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(int(sys.argv[2]), np.uint8)[: 2**20].fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(choice: str, size: int = 2**20, **environment: str) -> tuple[str, int]:
    """The answer of `keep_freed_memory`, and the page faults of 50 uses of the first MiB of `size` bytes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, choice, str(size)]
    result = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    said, faults = result.stdout.split()
    return said, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept():
    """One MiB has 256 pages."""
    said, faults = page_faults("keep", MALLOC_MMAP_THRESHOLD_="65536")
    assert said == "False"
    assert faults >= 50 * 256
    for size in (2**20, 5 * 2**29):  # more than an int of bytes: the gradient of a million prototypes
        said, faults = page_faults("keep", size)
        assert said == "True"
        assert faults < 10  # 50 would mean that huge pages are taken anew


@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_TOP_PAD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=7"}],
    ids=lambda s: next(iter(s)),
)
def test_what_a_user_has_set_of_the_allocator_stays(setting):
    assert page_faults("keep", **setting)[0] == "False"


def test_other_c_libraries_are_left_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_given_back():
    code = (
        "import numpy as np; from common.io import memory; memory.keep_freed_memory(); "
        "np.empty(64 * 2**20, np.uint8).fill(1); memory.reset_host_peak(); kept = memory.host_peak(); "
        "memory.give_back_freed_memory(); memory.reset_host_peak(); print(kept - memory.host_peak())"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert int(result.stdout) > 60 * MIB
