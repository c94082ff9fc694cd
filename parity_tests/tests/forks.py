"""python -m parity_tests.tests.forks BACKEND: the worker, in forks of a process that has the framework loaded.

A planted mistake needs a fresh copy of a package but no fresh framework, whose start takes longer than most cases. Each
line of the input is a request, [root, IN, OUT, file for the error output]; the answer is an exit status.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from common.backend import Backend
from parity_tests import processes, worker


class Forks:
    """Replaces `processes.in_new_process`. Each backend has one process, started at its first request."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[str]] = {}

    def __call__(self, backend: str, source: Path, target: Path, root: Path) -> tuple[int, str]:
        if backend not in self._processes:
            command = [sys.executable, "-m", "parity_tests.tests.forks", backend]
            pipe = subprocess.PIPE
            self._processes[backend] = subprocess.Popen(command, cwd=processes.ROOT, stdin=pipe, stdout=pipe, text=True)
        process = self._processes[backend]
        with tempfile.NamedTemporaryFile("r") as errors:
            print(json.dumps([str(root), str(source), str(target), errors.name]), file=process.stdin, flush=True)
            return int(process.stdout.readline()), errors.read()

    def close(self) -> None:
        for process in self._processes.values():
            process.stdin.close()
            process.wait()


def main(backend: str) -> None:
    package = backend.partition(".")[0] if "." in backend else Backend(backend).package
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Jittor prints what it compiles
    importlib.import_module(f"{package}.runtime")  # it loads the framework
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    for line in sys.stdin:
        root, source, target, errors = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(errors, os.O_WRONLY), 2)
            os.dup2(2, 1)
            os.chdir(root)
            sys.path.insert(0, root)
            status = 1
            try:
                status = worker.main([backend, source, target])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
