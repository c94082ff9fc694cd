"""Jittor's cache: whose it is, and how a start that was stopped goes on; by commands in a cache of their own."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jittor as jt
import pytest

from jittor_impl import cache

ROOT = Path(__file__).parents[2]
CACHE = Path(jt.compiler.jit_utils.cache_path)
HOME = next(folder.parent for folder in CACHE.parents if folder.name == ".cache")  # the innermost
LIBRARY = next(CACHE.glob("jit_utils_core*.so")).name


@pytest.fixture
def started(tmp_path):
    """Starts `python -m jittor_impl info` in a session of its own, with a cache below tmp_path; ends what is left."""
    processes = []

    def start(**environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "jittor_impl", "info"]
        environment = {**os.environ, "JITTOR_HOME": str(tmp_path), **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        heeds_ctrl_c = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs in the background ignores it
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, start_new_session=True, preexec_fn=heeds_ctrl_c, **pipes
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.communicate(timeout=60)


@pytest.fixture
def own_cache(tmp_path) -> Path:
    """The folder that `started` compiles into."""
    folder = tmp_path / CACHE.relative_to(HOME)
    folder.mkdir(parents=True)
    return folder


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_has_a_name_of_its_own():
    assert CACHE.name == os.environ["cache_name"] == "sface"


def test_a_home_that_is_named_for_others_is_neither_followed_nor_written(tmp_path, started):
    """Jittor keeps it in ~/.cache/jittor/config.json."""
    config = tmp_path / ".cache" / "jittor" / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"JITTOR_HOME": str(tmp_path / "theirs")}))
    output, errors = started(HOME=str(tmp_path), JITTOR_HOME=str(HOME)).communicate(timeout=300)
    assert f"cache                    {CACHE}\n" in output, errors
    assert json.loads(config.read_text()) == {"JITTOR_HOME": str(tmp_path / "theirs")}
    config.unlink()
    started(HOME=str(tmp_path), JITTOR_HOME=str(HOME)).communicate(timeout=300)
    assert not config.exists()


def test_nor_by_the_python_that_compiles_an_operator(tmp_path):
    command = f'{jt.flags.python_path} -c "import jittor_utils; print(jittor_utils.cache_path)"'
    environment = {**os.environ, "HOME": str(tmp_path / "user"), "JITTOR_HOME": str(tmp_path / "ours")}
    output = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=True).stdout
    assert output == f"{CACHE}\n"
    assert not list(tmp_path.iterdir())
    assert cache.python_in(cache.home(), jt.flags.python_path) == jt.flags.python_path, "it is in the operators' keys"


def test_without_jittor_home_it_is_ours(tmp_path, monkeypatch):
    monkeypatch.delenv("JITTOR_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.home() == tmp_path / ".cache" / "sface"


def test_a_home_that_cannot_be_written(tmp_path, started):
    (tmp_path / "file").touch()
    process = started(JITTOR_HOME=str(tmp_path / "file" / "home"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    expected = f"error: Jittor cannot write to {tmp_path}/file/home: Not a directory; name another folder with JITTOR"
    assert errors.startswith(expected)
    assert errors.count("\n") == 1


@pytest.mark.parametrize("place", [HOME / ".cache" / "jittor", CACHE.parents[3], CACHE])
def test_a_cache_of_another_user(tmp_path, place):
    """The whole of it, or a folder in it: what is not to be written is no traceback. Root may write anywhere."""
    folder = tmp_path / place.relative_to(HOME)
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    as_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    if as_user and shutil.which(as_user[0]) is None:
        pytest.skip("without setpriv root cannot be kept from writing")
    command = [*as_user, sys.executable, "-m", "jittor_impl", "info"]
    environment = os.environ | {"JITTOR_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: Jittor cannot write to {tmp_path}")
    assert last.endswith(": Permission denied; name another folder with JITTOR_HOME")
    assert "Traceback" not in done.stderr


def test_a_compilation_that_was_killed_is_finished(started, own_cache):
    """Left is the first library without its key: Jittor alone would compile it again and end with status 0."""
    process = started()
    wait_for((own_cache / LIBRARY).exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    key = own_cache / f"{LIBRARY}.key"
    assert not key.exists(), "killed too late"
    shutil.copy(CACHE / LIBRARY, own_cache)  # the whole of it, as the kill may have left half
    again = started()
    wait_for((own_cache / "gen" / "jit_flags.h").exists, again)  # what it does next
    assert key.exists()


def test_an_import_that_ends_the_process_is_an_error():
    with pytest.raises(ImportError, match="start the same command again"), cache.errors_of_an_import():
        sys.exit(0)
    with pytest.raises(ImportError, match="could not be compiled.*(g\\+\\+ failed)"), cache.errors_of_an_import():
        raise RuntimeError("g++ failed")


def test_two_compile_at_once(started, own_cache):
    """The second one waits, and says so."""
    with (own_cache.parent / "jittor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = started().stderr.readline()
    assert line == f"Jittor waits for another process, which compiles it in {own_cache}\n"


def test_ctrl_c_while_jittor_is_compiled(started, own_cache):
    process = started()
    wait_for((own_cache / "gen").exists, process)
    time.sleep(1)  # the compiler runs
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped while Jittor was compiled; the same command goes on from there\n" in errors
    assert "Traceback" not in errors
    assert f"Cache: {own_cache}" in errors


def test_ctrl_c_while_an_operator_is_compiled():
    """It ends the compiler, which leaves neither an operator nor a key."""
    code = """
from jittor_impl import distributed
from jittor_impl.runtime import jt
jt.flags.python_path = "false"
distributed.end_with(lambda: jt.code([1], "float32", [jt.zeros(1)], cpu_src="// not compiled by any test").item())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the compiler of one of Jittor's operators was stopped, or says above why")
    assert "Traceback" not in done.stderr


def test_progress_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("common.io.progress.SECONDS", 0)
    progress = cache.Progress("Compiling", 3)
    for index in range(3):
        progress.update(index)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"Compiling: {done} of 3 files" for done in (1, 2, 3)]
