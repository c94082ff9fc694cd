import json
import time

import pytest

from benchmarks import step, verify, worker
from benchmarks.head import benchmark
from benchmarks.process import Worker


class Here(Worker):
    """Works in this process, which so loads PyTorch once; for tests of what is made of the answers."""

    def __init__(self, backend: str, kind: str, settings: dict) -> None:
        assert backend == "pytorch", "two frameworks clash in a process"
        start = time.perf_counter()
        self.backend = backend
        self._work, self.facts = worker.KINDS[kind](backend, json.loads(json.dumps(settings)))
        self._work(1)
        self.seconds = time.perf_counter() - start

    def ask(self, amount: int) -> dict:
        start, cpu_start = time.perf_counter(), time.process_time()
        said = self._work(amount)
        return {**said, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}

    def close(self) -> None:
        pass


@pytest.fixture
def workers_here(monkeypatch):
    for module in (step, verify, benchmark):
        monkeypatch.setattr(module, "Worker", Here)
