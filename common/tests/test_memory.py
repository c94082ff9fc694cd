"""Memory of this process, and of GPUs as a stand-in for nvidia-smi tells it."""

import numpy as np
import pytest

from common import memory
from common.memory import GpuMemory

MIB = 2**20


def test_host_peak_follows_what_is_resident():
    memory.reset_host_peak()
    before = memory.host_peak()
    block = np.ones(64 * MIB, np.uint8)
    with_block = memory.host_peak()
    assert 60 * MIB < with_block - before < 80 * MIB
    del block
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
