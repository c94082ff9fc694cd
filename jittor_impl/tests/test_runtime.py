"""Devices by name, and what is settled before Jittor is imported; tried in processes of their own."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jittor as jt
import pytest

from jittor_impl import runtime
from jittor_impl.precompiled import precompile_headers, with_parsed_headers

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
    assert Path(jt.flags.cache_path).name == os.environ["cache_name"] == "sface"


GCC = pytest.mark.skipif(jt.flags.cc_type != "g++", reason="Jittor found another compiler than GCC")


@GCC
def test_operators_are_compiled_with_headers_that_are_parsed_already():
    made = jt.code([1], "float32", [jt.zeros(1)], cpu_src="@out(0) = @in0(0) + 2.75f;")
    assert made.item() == 2.75
    sources = [path for path in (Path(jt.flags.cache_path) / "jit").glob("*.cc") if "2.75f" in path.read_text("utf-8")]
    command = sources[0].with_suffix(".so.key").read_text("utf-8").splitlines()[0].partition("--cc_path=")[2]
    assert_headers_are_parsed(f"{command} -g")


def assert_headers_are_parsed(command: str) -> None:
    # -H: what was included; a header that was parsed already has a "!"
    listing = [*shlex.split(command), "-H", "-fsyntax-only"]
    found = subprocess.run(listing, capture_output=True, text=True, check=True).stderr
    assert [line for line in found.splitlines() if line.startswith("! ") and line.endswith(".h.gch")]
    assert "var.h" not in found


@GCC
@pytest.mark.skipif(bool(jt.has_cuda), reason="this Jittor has CUDA")
def test_so_is_the_core(tmp_path):
    key = Path(jt.flags.cache_path) / "obj_files" / "var.cc.o.key"
    command, parsed_too, _ = key.read_text("utf-8").partition(" -w -include ")
    assert parsed_too
    run = with_parsed_headers(lambda commands, *_: assert_headers_are_parsed(commands[0]))
    run([f'{command} -c -o "{tmp_path}/var.o"'], str(tmp_path), "", "Compiling jittor_core")
    assert [path.name for path in tmp_path.iterdir()] == ["core.h"], "80 MB are kept"


def settings(folder: Path, **flags: str) -> SimpleNamespace:
    """What `precompile_headers` asks Jittor for, with a cache of its own."""
    own = {name: getattr(jt.flags, name) for name in ("cc_type", "cc_path")}
    own["cc_flags"] = jt.flags.cc_flags.partition("-include")[0]
    return SimpleNamespace(flags=SimpleNamespace(**own | flags), compiler=SimpleNamespace(cache_path=str(folder)))


@GCC
def test_headers_are_parsed_once_for_each_jittor(tmp_path, monkeypatch):
    assert precompile_headers(settings(tmp_path))
    header, parsed = sorted(tmp_path.iterdir())
    assert parsed.name == f"{header.name}.gch"
    made = parsed.stat().st_mtime_ns
    again = settings(tmp_path)
    assert precompile_headers(again)
    assert again.flags.cc_flags.endswith(f'-include "{header}" ')
    assert not precompile_headers(again), "once for a process"
    assert parsed.stat().st_mtime_ns == made
    newer = tmp_path / "jittor_core.so"
    newer.touch()
    monkeypatch.setattr(sys.modules["jittor_core"], "__file__", str(newer))
    assert precompile_headers(settings(tmp_path))
    assert parsed.stat().st_mtime_ns > made


@pytest.mark.parametrize("flags", [{"cc_type": "clang"}, {"cc_path": "false"}, {"cc_flags": "-include own.h"}])
def test_without_such_headers_operators_are_compiled_as_ever(tmp_path, flags):
    asked = settings(tmp_path, **flags)
    before = asked.flags.cc_flags
    assert not precompile_headers(asked)
    assert asked.flags.cc_flags == before
    assert not list(tmp_path.iterdir())


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


def test_a_segmentation_fault_ends_a_command():
    """Jittor's own handler runs the exits of its libraries, which may wait for ever."""
    code = "import ctypes; from jittor_impl.distributed import end_with; end_with(lambda: ctypes.string_at(0))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in done.stderr
    assert "Caught segfault" not in done.stderr


def test_a_command_starts_without_an_output_for_errors():
    command = [sys.executable, "-m", "jittor_impl", "info"]
    subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command], cwd=ROOT, check=True, timeout=300)


def test_kernels_know_nan():
    """Jittor's default flags, -Ofast, assume that there is none, and a diverging run would not be noticed."""
    assert "-Ofast" not in jt.flags.cc_flags
    x = jt.array([1.0, float("nan"), float("inf")])
    assert jt.isfinite(x).numpy().tolist() == [True, False, False]
