"""python -m benchmarks speed: images a second that each backend trains, in turns, beside PyTorch's in the same run."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from common import config as configuration
from common.config import DataConfig, ModelConfig, OptimiserConfig, RunConfig
from common.files import atomic_write, write_json
from common.recipes import lfw_small

BACKENDS = ("pytorch", "mxnet", "jittor")
PEOPLE = {"lfw-small": 336}
OTHERS = 1000  # identities of the other cases
SECONDS = 4.0  # about so long is one turn


@dataclass(frozen=True)
class Options:
    """Train each network on one random batch in every backend, in turns, and print images a second."""

    backends: str = ",".join(BACKENDS)
    """Names, separated by commas; ratios are to the first."""
    cases: tuple[str, ...] = ("lfw-small", "mobilefacenet", "iresnet50")
    """lfw-small (the recipe's network), or a backbone, at 112x112."""
    turns: int = 7
    """Measurements of each backend; the figure is their median."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Also write speed.json and speed.md to this folder."""


@dataclass(frozen=True)
class Measured:
    """One network in one backend."""

    backend: str
    first_step: float  # seconds from the start of the process to the end of the first step
    images_per_second: list[float]  # one a turn

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)


class _Worker:
    """A process that trains one network in one backend whenever it is told to."""

    def __init__(self, backend: str, config: RunConfig, num_classes: int) -> None:
        start = time.perf_counter()
        python = os.environ.get(f"SFACE_PYTHON_{backend.upper()}", sys.executable)
        text = json.dumps(configuration.to_json(config))
        self._backend = backend
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", backend, text, str(num_classes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()
        self.first_step = time.perf_counter() - start

    def seconds(self, steps: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"{self._backend}: its process ended with {self._process.wait()}; it says why above")
        return float(json.loads(line)["seconds"])


def case_config(case: str, device: str) -> tuple[RunConfig, int]:
    """Configuration and number of identities of a case."""
    if case == "lfw-small":
        recipe = lfw_small()
    else:
        batch_size = 32 if case == "mobilefacenet" else 8
        recipe = RunConfig(
            name=case,
            data=DataConfig(root=Path("unused")),
            model=ModelConfig(backbone=case),
            optimiser=OptimiserConfig(batch_size=batch_size),
        )
    return configuration.from_json({**configuration.to_json(recipe), "device": device}), PEOPLE.get(case, OTHERS)


def measure(case: str, backends: list[str], turns: int, device: str) -> list[Measured]:
    """Each backend's figures; the backends take turns, so that a machine that slows down slows all of them.

    Raises:
        ValueError: a backend cannot run.
    """
    config, num_classes = case_config(case, device)
    workers: list[_Worker] = []
    try:
        progress = tqdm(total=len(backends) * (turns + 1), desc=case, unit="turn", leave=False)
        for backend in backends:
            workers.append(_Worker(backend, config, num_classes))
        # the first turn warms up (lazily compiled operators, memory pools) and says how many steps fill a turn
        steps = []
        for worker in workers:
            worker.seconds(2)
            steps.append(max(1, round(SECONDS / (worker.seconds(2) / 2))))
            progress.update()
        rates: list[list[float]] = [[] for _ in workers]
        for _ in range(turns):
            for worker, count, rate in zip(workers, steps, rates, strict=True):
                rate.append(count * config.optimiser.batch_size / worker.seconds(count))
                progress.update()
        progress.close()
    finally:
        for worker in workers:
            worker.close()
    return [Measured(b, w.first_step, r) for b, w, r in zip(backends, workers, rates, strict=True)]


def markdown(results: dict[str, list[Measured]]) -> str:
    """The table: a row a network and backend."""
    lines = [
        "| network | backend | images/s (lowest, highest) | ratio | first step after |",
        "|---|---|---|---|---|",
    ]
    for case, measured in results.items():
        for found in measured:
            low, high = min(found.images_per_second), max(found.images_per_second)
            lines.append(
                f"| {case} | {found.backend} | {found.median:.1f} ({low:.1f}, {high:.1f}) "
                f"| {found.median / measured[0].median:.2f} | {found.first_step:.1f} s |"
            )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks speed", args=arguments)
    backends = [name.strip() for name in options.backends.split(",") if name.strip()]
    unknown = sorted(set(backends) - set(BACKENDS))
    if unknown or not backends or options.turns < 1:
        raise ValueError(f"expected backends among {', '.join(BACKENDS)} and at least 1 turn, got {options}")
    results = {case: measure(case, backends, options.turns, options.device) for case in options.cases}
    page = markdown(results)
    print(page)
    if options.out is not None:
        with atomic_write(options.out / "speed.md", "w") as file:
            file.write(page + "\n")
        machine: dict[str, Any] = {"platform": platform.platform(), "cpus": os.cpu_count()}
        rows = {case: [vars(found) for found in measured] for case, measured in results.items()}
        write_json(options.out / "speed.json", {"machine": machine, "device": options.device, "results": rows})
    return 0
