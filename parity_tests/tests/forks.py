"""python -m parity_tests.tests.forks BACKEND: commands in forks of a process that has the backend's framework loaded.

A start of a framework takes longer than most cases and many a short run. Each line of the input is a request,
[folder, module, arguments, file for the error output]: `python -m module arguments` in a fork, with the folder first on
its path. The answers are its process number, and when it has ended, its exit status.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from common.backend import Backend
from parity_tests import processes

# What a training loads besides.
PRELOADED = ("common.commands.train", "common.reports.run_report", "sklearn.metrics", "tensorboard.summary")


class Fork:
    """A command in a fork of a server; named as in `subprocess.Popen`."""

    def __init__(self, server: subprocess.Popen[bytes], errors: Path, *command: object) -> None:
        self._answers, self._errors = server.stdout, errors
        server.stdin.write(json.dumps([*command, str(errors)]).encode() + b"\n")
        self.pid, self.returncode = int(self._answers.readline()), None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._answers.readline())
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(self.pid, number)

    def errors(self) -> str:
        self.wait()
        return self._errors.read_text()


class Forks:
    """Servers of forks: one a backend, started at its first request. Each runs one command at a time."""

    def __init__(self) -> None:
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = tempfile.TemporaryDirectory()

    def start(self, backend: str, folder: Path, module: str, arguments: list[str]) -> Fork:
        if backend not in self._servers:
            command = [sys.executable, "-m", "parity_tests.tests.forks", backend]
            pipe = subprocess.PIPE
            self._servers[backend] = subprocess.Popen(
                command,
                cwd=processes.ROOT,
                stdin=pipe,
                stdout=pipe,
                bufsize=0,  # so that `poll` sees each answer
            )
        descriptor, errors = tempfile.mkstemp(dir=self._folder.name)
        os.close(descriptor)
        return Fork(self._servers[backend], Path(errors), str(folder), module, arguments)

    def __call__(self, backend: str, source: Path, target: Path, root: Path) -> tuple[int, str]:
        """Replaces `processes.in_new_process`."""
        fork = self.start(backend, root, "parity_tests.worker", [backend, str(source), str(target)])
        return fork.wait(), fork.errors()

    def close(self) -> None:
        for server in self._servers.values():
            server.stdin.close()
            server.wait()
        self._folder.cleanup()


def main(backend: str) -> None:
    package = backend.partition(".")[0] if "." in backend else Backend(backend).package
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Jittor prints what it compiles
    for module in (f"{package}.runtime", *PRELOADED):  # the first loads the framework
        importlib.import_module(module)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Jittor ends when a child of its process was killed
    for line in sys.stdin:
        folder, module, arguments, errors = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(folder, module, arguments, errors)
        print(child, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _run(folder: str, module: str, arguments: list[str], errors: str) -> None:
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    os.dup2(2, 1)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = [module, *arguments]
    status = 1
    try:
        runpy.run_module(module, run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
