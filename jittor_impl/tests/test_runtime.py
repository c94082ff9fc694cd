"""Devices by name, and what is settled before Jittor is imported; tried in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import jittor as jt
import pytest

from jittor_impl import runtime

ROOT = Path(__file__).parents[2]


def test_devices():
    assert runtime.resolve_device("cpu") == "cpu"
    assert jt.flags.use_cuda == 0
    assert runtime.describe("cpu")["version"] == jt.__version__
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        runtime.resolve_device("tpu")


@pytest.mark.skipif(bool(jt.has_cuda), reason="this Jittor has CUDA")
def test_a_device_that_is_not_there_says_how_to_get_it():
    assert runtime.resolve_device("auto") == "cpu"
    with pytest.raises(ValueError, match="cuda:0 asked for, but Jittor .* found no CUDA device .*nvcc_path"):
        runtime.resolve_device("cuda:0")


@pytest.mark.skipif(bool(jt.has_cuda), reason="there is a CUDA device")
def test_a_cuda_compiler_without_a_device_is_left_alone():
    assert os.environ["nvcc_path"] == ""


def test_operators_are_compiled_in_one_thread_and_kept_for_all_branches():
    assert jt.flags.use_parallel_op_compiler == 1
    assert Path(jt.flags.cache_path).name == os.environ["cache_name"] == "main"


def test_onednn_comes_from_the_wheel():
    assert runtime.describe("cpu")["onednn"] is True


def test_links_are_made_mended_and_left(tmp_path):
    folder = tmp_path / "onednn"
    assert runtime._link_onednn(folder)
    library = folder / "lib" / "libmkldnn.so"
    assert library.is_symlink()
    assert (folder / "include" / "dnnl.hpp").exists()
    first = library.readlink()
    library.unlink()
    library.symlink_to(tmp_path / "an environment that was deleted")
    assert runtime._link_onednn(folder)
    assert library.readlink() == first
    library.unlink()
    library.write_bytes(b"the user's own")
    assert runtime._link_onednn(folder)
    assert library.read_bytes() == b"the user's own"


def test_without_the_wheel_it_says_what_that_costs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runtime, "ONEDNN_LIBRARY", "no-such-package")
    monkeypatch.setenv("use_mkl", "1")
    runtime._provide_onednn(tmp_path)
    assert os.environ["use_mkl"] == "0"
    assert "many times slower; pip install -r requirements/jittor.txt" in capsys.readouterr().err


def test_what_the_compiler_needs_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("cc_path", raising=False)
    with pytest.raises(FileNotFoundError, match="found no C\\+\\+ compiler; on Debian: apt install g\\+\\+"):
        runtime._check_compiler()
    monkeypatch.setenv("cc_path", "/usr/bin/g++")
    monkeypatch.setattr(runtime.sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="needs Python's headers, not found: .*Python.h; .*python3-dev"):
        runtime._check_compiler()


def test_ctrl_c_stays_pythons():
    """Jittor's own handler would end the process before a checkpoint is saved."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in a background job
        "import jittor_impl; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=300)


def test_kernels_know_nan():
    """Jittor's default flags, -Ofast, assume that there is none, and a diverging run would not be noticed."""
    assert "-Ofast" not in jt.flags.cc_flags
    x = jt.array([1.0, float("nan"), float("inf")])
    assert jt.isfinite(x).numpy().tolist() == [True, False, False]
