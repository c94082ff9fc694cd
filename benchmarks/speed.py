"""python -m benchmarks speed: images a second that each backend trains, in turns, beside PyTorch's in the same run."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks import results
from benchmarks.process import Worker, named_backends
from benchmarks.results import Bar, Chart
from common import config as configuration
from common.backend import BACKENDS
from common.config import DataConfig, ModelConfig, OptimiserConfig, RunConfig
from common.recipes import lfw_small

PEOPLE = {"lfw-small": 336}
OTHERS = 1000  # identities of the other cases
SECONDS = 4.0  # about so long is one turn
METHOD = (
    "Images per second of each backend's trainer on one random batch, each in a process of its own, in turns; ratios "
    "are of medians to the first backend."
)


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
    settings = {"config": configuration.to_json(config), "classes": num_classes}
    workers: list[Worker] = []
    try:
        progress = tqdm(total=len(backends) * (turns + 1), desc=case, unit="turn", leave=False)
        for backend in backends:
            workers.append(Worker(backend, "random_batch", settings))
        # the first turn warms up (lazily compiled operators, memory pools) and says how many steps fill a turn
        steps = []
        for worker in workers:
            worker.work(2)
            steps.append(max(1, round(SECONDS / (worker.work(2).seconds / 2))))
            progress.update()
        rates: list[list[float]] = [[] for _ in workers]
        for _ in range(turns):
            for worker, count, rate in zip(workers, steps, rates, strict=True):
                rate.append(count * config.optimiser.batch_size / worker.work(count).seconds)
                progress.update()
        progress.close()
    finally:
        for worker in workers:
            worker.close()
    return [Measured(b, float(w.facts["seconds"]), r) for b, w, r in zip(backends, workers, rates, strict=True)]


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


def charts(measured: dict[str, list[Measured]]) -> list[Chart]:
    return [
        Chart(
            f"Training {case}",
            "images/s",
            [Bar(one.backend, results.figure(one.images_per_second)) for one in found],
        )
        for case, found in measured.items()
    ]


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks speed", args=arguments)
    backends = named_backends(options.backends)
    if options.turns < 1:
        raise ValueError(f"turns: expected at least 1, got {options.turns}")
    ran_on = results.machine()
    measured = {case: measure(case, backends, options.turns, options.device) for case in options.cases}
    text = markdown(measured)
    print(text)
    if options.out is not None:
        rows = {case: [vars(found) for found in each] for case, each in measured.items()}
        details = {"device": options.device, "results": rows}
        results.write(
            options.out, "speed", text=text, method=METHOD, charts=charts(measured), ran_on=ran_on, details=details
        )
    return 0
