"""Processes that measure, one framework each: started, and told in turns how much to do."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from common.backend import BACKENDS


class Spent(NamedTuple):
    """What a turn took. CPU seconds are those of all threads: a machine that others use changes them little."""

    seconds: float
    cpu_seconds: float


class Worker:
    """A process that does one kind of work in one backend whenever it is told to (`benchmarks.worker`).

    Args:
        backend: of `BACKENDS`; SFACE_PYTHON_BACKEND names its interpreter, if it is another.
        kind: of work, of `benchmarks.worker.KINDS`.
        settings: of that kind; JSON values.

    Raises:
        ValueError: the process ended.
    """

    def __init__(self, backend: str, kind: str, settings: Mapping[str, Any]) -> None:
        python = os.environ.get(f"SFACE_PYTHON_{backend.upper()}", sys.executable)
        self.backend, self.kind = backend, kind
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", backend, kind, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._answer()

    def work(self, amount: int) -> Spent:
        """Do `amount` units, and wait for the device."""
        answer = self.ask(amount)
        return Spent(float(answer["seconds"]), float(answer["cpu_seconds"]))

    def ask(self, amount: int) -> dict[str, Any]:
        """As `work`, for everything that the kind of work has to say."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{amount}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"{self.backend}: its process ended with {self._process.wait()}; it says why above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def named_backends(text: str) -> list[str]:
    """Names separated by commas; a ValueError says which there are."""
    backends = [name.strip() for name in text.split(",") if name.strip()]
    if not backends or set(backends) - set(BACKENDS):
        raise ValueError(f"backends: expected some of {', '.join(BACKENDS)}, got {text!r}")
    return backends


def ratios(turns: Sequence[Spent], base: Sequence[Spent]) -> list[float]:
    """Seconds of each turn of `base` over those of the same turn of `turns`: above 1 where `turns` are faster."""
    return [other.seconds / one.seconds for one, other in zip(turns, base, strict=True)]


def cpu_ratio(turns: Sequence[Spent], base: Sequence[Spent]) -> float:
    """The same of CPU seconds, of the medians."""
    return statistics.median(t.cpu_seconds for t in base) / statistics.median(t.cpu_seconds for t in turns)
