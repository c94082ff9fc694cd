"""Settings that Jittor needs before it is imported; its device, precision, threads and random seed.

Jittor compiles itself on its first import and each operator on its first use (`jittor_impl.cache`). By default it takes
a CUDA compiler as a sign of a CUDA device, and downloads oneDNN, its library of CPU convolutions. Both fail on a plain
machine. Variables that a user has set in the environment are kept.
"""

import ctypes
import os
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

from common.backend import how_to_install
from jittor_impl import cache
from jittor_impl.precompiled import precompile_headers, with_parsed_headers

PRECISIONS = {"fp32": "float32", "fp64": "float64"}

ONEDNN_HEADERS, ONEDNN_LIBRARY = "onednn-devel-cpu-gomp", "onednn-cpu-gomp"
ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"  # where Jittor looks before it downloads

# Jittor's default, -Ofast, assumes that no value is NaN or infinite, so a diverging run would not be noticed. These
# flags leave open only the order of sums, the sign of zero, errno and trapping.
KERNEL_FLAGS = "-O3 -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math"


def _check_compiler() -> None:
    """Raise a FileNotFoundError if the C++ compiler or Python's headers are missing; says how to install them."""
    if not (os.environ.get("cc_path") or shutil.which("g++")):
        raise FileNotFoundError("Jittor compiles its operators and found no C++ compiler; on Debian: apt install g++")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise FileNotFoundError(
            f"Jittor needs Python's headers, not found: {header}; on Debian: apt install python3-dev"
        )


def _cuda_devices() -> int:
    """Number of usable CUDA devices, from the driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _installed_file(package: str, ending: str) -> Path | None:
    """Path of the installed file of a package whose name has this ending; None: there is none."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    return next((Path(file.locate()).resolve() for file in files if file.as_posix().endswith(ending)), None)


def _link_onednn(folder: Path) -> bool:
    """Link the wheels' oneDNN to where Jittor would download it; False: there are no wheels.

    A folder that works is kept. A link into a deleted environment is replaced, in one atomic step each, so that several
    processes can do this at once.
    """
    links = [folder / "include", folder / "lib" / "libmkldnn.so", folder / "lib" / "libdnnl.so.2"]
    if (folder / "include" / "dnnl.hpp").exists() and all(link.exists() for link in links):
        return True
    header = _installed_file(ONEDNN_HEADERS, "/include/dnnl.hpp")
    library = _installed_file(ONEDNN_LIBRARY, "/libdnnl.so.2")
    if header is None or library is None:
        return False
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    for link, target in zip(links, (header.parent, library, library), strict=True):
        if link.exists() and not link.is_symlink():
            continue
        temporary = link.with_name(f".{link.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)
    return True


def _provide_onednn(home: Path) -> None:
    if os.environ.get("use_mkl", "1") != "1" or _link_onednn(home / ".cache" / "jittor" / "mkl" / ONEDNN_FOLDER):
        return
    os.environ["use_mkl"] = "0"
    print(
        f"warning: without oneDNN Jittor's convolutions on the CPU are many times slower; {how_to_install('jittor')}",
        file=sys.stderr,
    )


def _prepare_environment(home: Path) -> None:
    _check_compiler()
    if _cuda_devices() == 0:
        os.environ.setdefault("nvcc_path", "")
    os.environ.setdefault("cc_flags", "-O2")  # Jittor adds -Ofast unless a level is named
    os.environ.setdefault("kernel_flags", KERNEL_FLAGS)
    # The default is the name of the current git branch: Jittor would compile everything again on each branch.
    os.environ.setdefault("cache_name", cache.NAME)
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        os.environ.setdefault("use_mpi", "0")  # mpirun sets the other variable; a single process needs no MPI
    # With more threads the compiler rarely crashes, as they share unguarded state. One thread takes 1.3 times as long.
    os.environ.setdefault("use_parallel_op_compiler", "1")
    os.environ.setdefault("FIX_TORCH_ERROR", "0")  # else Jittor imports PyTorch where it is installed
    _provide_onednn(home)


def _announce_compilation(folder: Path) -> None:
    """Say so if the cache lacks a Jittor for this interpreter, compiler and machine."""
    if any(folder.glob("jittor_core*.key")) or any(folder.glob("*/jittor_core*.key")):  # the second with CUDA
        return
    how = "goes on compiling itself" if any(folder.glob("obj_files/*.key")) else "compiles itself on its first import"
    text = f"Jittor {how}, for minutes, once; after that each operator on first use. Cache: {folder}"
    print(text, file=sys.stderr, flush=True)


def _import_jittor(home: Path) -> Any:
    os.environ.setdefault("log_silent", "1")
    with cache.only_home(home), cache.errors_of_an_import():
        import jittor_utils

        cache.mend(jittor_utils)
        _announce_compilation(Path(jittor_utils.cache_path))
        jittor_utils.DelayProgress = cache.Progress
        jittor_utils.run_cmds = with_parsed_headers(jittor_utils.run_cmds)
        with cache.kept_signals(jittor_utils):
            import jittor

    jittor.flags.python_path = cache.python_in(home, jittor.flags.python_path)
    return jittor


_home = cache.home()
_prepare_environment(_home)
jt = _import_jittor(_home)
precompile_headers(jt)


def resolve_device(name: str) -> str:
    """The device that a configuration names. From now on Jittor computes there, in the whole process.

    Args:
        name: "cpu", "cuda", "cuda:N", or "auto": the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: an unknown name, or no such device; says how to get it.
    """
    kind, _, number = name.partition(":")
    if name not in ("auto", "cpu") and (kind != "cuda" or not (number or "0").isdecimal()):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    count, index = _cuda_devices() if jt.has_cuda else 0, int(number or 0)
    if kind == "cuda" and not jt.has_cuda:
        raise ValueError(
            f"device: {name} asked for, but Jittor ({jt.__version__}) found no CUDA device and compiler when it was "
            "imported; it needs a driver, and CUDA's nvcc on the PATH or named by nvcc_path"
        )
    if kind == "cuda" and index >= count:
        raise ValueError(
            f"device: {name} asked for, but Jittor sees {count} CUDA devices (driver, CUDA_VISIBLE_DEVICES)"
        )
    use_cuda = count > 0 and name != "cpu"
    if use_cuda and index:
        os.environ["device_id"] = str(index)  # otherwise Jittor restarts the process to change the device
        jt.flags.device_id = index
    jt.flags.use_cuda = int(use_cuda)
    return f"cuda:{index}" if use_cuda else "cpu"


def describe(device: str) -> dict[str, Any]:
    """Version, device and threads as JSON values, for `info` and for the record of a run."""
    return {
        "name": "jittor",
        "version": jt.__version__,
        "device": device,
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "cpus": os.cpu_count(),
        "onednn": bool(jt.compile_extern.use_mkl),
        "cuda": jt.compiler.nvcc_path or None,
        "cache": jt.flags.cache_path,
    }


def seed_everything(seed: int) -> None:
    """Seed dropout on all devices. Initial weights, sample order and flips have seeds of their own in `common`."""
    jt.set_seed(seed % 2**31)
