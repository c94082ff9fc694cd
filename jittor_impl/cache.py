"""Where Jittor keeps what it compiles, apart from any other Jittor's; and what may go wrong there, in a line."""

import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.io.progress import ProgressBar
from common.ranks import BAD_INPUT, INTERRUPTED

NAME = "sface"
PATIENCE = 3  # seconds of waiting for another process before that is said


def home() -> Path:
    """The folder that holds .cache/jittor: JITTOR_HOME, else ~/.cache/sface.

    Raises:
        OSError: it cannot be written.
    """
    folder = Path(os.environ.get("JITTOR_HOME") or Path.home() / ".cache" / NAME).absolute()
    try:
        (folder / ".cache" / "jittor").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder / ".cache" / "jittor").close()
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return folder


def _cannot_write(folder: object, error: OSError) -> OSError:
    reason = error.strerror or error
    return OSError(f"Jittor cannot write to {folder}: {reason}; name another folder with JITTOR_HOME")


@contextlib.contextmanager
def only_home(folder: Path) -> Iterator[None]:
    """Have Jittor take this home when it is imported.

    It reads ~/.cache/jittor/config.json: the JITTOR_HOME of an earlier process, whosever. It would write ours there.
    """
    before = {name: os.environ.get(name) for name in ("HOME", "JITTOR_HOME")}
    os.environ.update(dict.fromkeys(before, str(folder)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def python_in(folder: Path, python: str) -> str:
    """The command with which Jittor starts a Python that imports a part of it, for each operator; with this home too.

    One word, as Jittor takes the words after the first one for files. The same for a `python` that has it already: the
    command is in the operators' keys, and processes with other keys would compile them again and again.
    """
    python = python.rpartition("${IFS}")[2]
    return f"env${{IFS}}HOME='{folder}'${{IFS}}JITTOR_HOME='{folder}'${{IFS}}{python}"


def mend(jittor_utils: Any) -> None:
    """Wait until no other process compiles Jittor, and remove a half that one left which was killed.

    After it compiled its first library, Jittor writes the library's key. If it finds the one without the other, it
    compiles the library again and ends the process with status 0.
    """
    from jittor_utils import lock

    folder = Path(jittor_utils.cache_path)
    text = f"Jittor waits for another process, which compiles it in {folder}"
    waiting = threading.Timer(PATIENCE, print, (text,), {"file": sys.stderr, "flush": True})
    waiting.daemon = True
    waiting.start()
    with lock.lock_scope():
        waiting.cancel()
        for library in folder.glob("jit_utils_core*.so"):
            if not Path(f"{library}.key").exists():
                library.unlink()


@contextlib.contextmanager
def kept_signals(jittor_utils: Any) -> Iterator[None]:
    """Keep Jittor's handlers from ending processes at once: this one at Ctrl-C, or with a child that is killed.

    An idle compiler that ends so keeps the lock of their queue, and at its end Jittor waits for that lock for ever. So
    it may after a segmentation fault, which is what it makes of too little memory: that ends this process as usual.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)}
    handlers |= dict.fromkeys((signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL), signal.SIG_DFL)
    load, start = jittor_utils.try_import_jit_utils_core, jittor_utils.pool_initializer

    def restore() -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def load_library(silent: bool | None = None) -> None:
        loaded = jittor_utils.cc
        load(silent)
        if loaded is None:
            restore()

    def start_compiler() -> None:
        start()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    jittor_utils.try_import_jit_utils_core, jittor_utils.pool_initializer = load_library, start_compiler
    yield
    restore()  # a library that was just compiled is loaded otherwise


class Progress:
    """In place of `jittor_utils.DelayProgress`, which counts files from 0."""

    def __init__(self, title: str, total: int | None = None) -> None:
        self._progress, self._done = ProgressBar(title, "files", total, delay=2), 0

    def update(self, index: int) -> None:
        """The file of this index is compiled."""
        self._progress.update(index + 1 - self._done)
        self._done = index + 1


@contextlib.contextmanager
def errors_of_an_import() -> Iterator[None]:
    """Turn what Jittor does when it cannot be imported into an ImportError: it ends the process, with status 0.

    A folder below the home that belongs to somebody else is an OSError, as in `home`.
    """
    try:
        yield
    except PermissionError as error:
        raise _cannot_write(error.filename, error) from None
    except SystemExit:
        raise ImportError("Jittor had to compile a part of itself again; start the same command again") from None
    except RuntimeError as error:
        raise ImportError(
            f"Jittor could not be compiled; start the same command again to go on from there ({error})"
        ) from error


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """If Python runs this package as a command, end it with a line and a status, as `common.commands.main` would."""
    try:
        yield
    except (ImportError, OSError, KeyboardInterrupt) as stop:
        if sys.argv[0] != "-m":  # what Python says while it looks for the command
            raise
        if isinstance(stop, KeyboardInterrupt):
            print("stopped while Jittor was compiled; the same command goes on from there", file=sys.stderr)
            sys.exit(INTERRUPTED)
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(BAD_INPUT)
