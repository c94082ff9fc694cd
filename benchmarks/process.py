"""Processes that measure. Each loads one framework, and is told in turns how much work to do."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from common.backend import BACKENDS


@dataclass(frozen=True)
class Options:
    """Options of all benchmarks."""

    turns: int = 7
    """Measurements of each; the figure is their median."""
    out: Path | None = None
    """Also write the table (NAME.md) and every measurement (NAME.json) to this folder."""


@dataclass(frozen=True)
class BackendOptions(Options):
    """Options of benchmarks that compare backends."""

    backends: str = ",".join(BACKENDS)
    """Names, separated by commas."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class Spent:
    """What a turn took. CPU seconds are those of all threads; other work on the machine changes them little."""

    seconds: float
    cpu_seconds: float


class Worker:
    """A process that does one kind of work in one backend (`benchmarks.worker`); leaving its `with` block ends it.

    Args:
        backend: its name; SFACE_PYTHON_<BACKEND> may name another interpreter.
        kind: of work, from `benchmarks.worker.KINDS`.
        settings: JSON values that this kind expects.

    `facts` is what the kind says of itself, `seconds` the time until its first unit of work was done.

    Raises:
        ValueError: the process ended.
    """

    def __init__(self, backend: str, kind: str, settings: Mapping[str, Any]) -> None:
        self.backend = backend
        self._process = subprocess.Popen(
            worker_command(backend, kind, settings), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            first = self._answer()
        except BaseException:
            self.close()
            raise
        self.facts: dict[str, Any] = first["facts"]
        self.seconds: float = first["seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def work(self, amount: int) -> Spent:
        """Do `amount` units of work and wait for the device."""
        answer = self.ask(amount)
        return Spent(answer["seconds"], answer["cpu_seconds"])

    def ask(self, amount: int) -> dict[str, Any]:
        """As `work`, but with everything that the kind answers."""
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
            raise ValueError(f"{self.backend}: its process ended with {self._process.wait()}; see its messages above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def worker_command(backend: str, kind: str, settings: Mapping[str, Any]) -> list[str]:
    """The command line of a worker."""
    python = os.environ.get(f"SFACE_PYTHON_{backend.upper()}", sys.executable)
    return [python, "-m", "benchmarks.worker", backend, kind, json.dumps(settings)]


def named_backends(text: str) -> list[str]:
    """Backends from names separated by commas.

    Raises:
        ValueError: no name, or an unknown one.
    """
    backends = [name.strip() for name in text.split(",") if name.strip()]
    if not backends or set(backends) - set(BACKENDS):
        raise ValueError(f"backends: expected some of {', '.join(BACKENDS)}, got {text!r}")
    return backends


def ratios(turns: Sequence[Spent], base: Sequence[Spent]) -> list[float]:
    """Speed over `base`, turn by turn: above 1 where `turns` are faster."""
    return [other.seconds / one.seconds for one, other in zip(turns, base, strict=True)]


def cpu_ratio(turns: Sequence[Spent], base: Sequence[Spent]) -> float:
    """The same ratio of the median CPU seconds."""
    return statistics.median(t.cpu_seconds for t in base) / statistics.median(t.cpu_seconds for t in turns)
