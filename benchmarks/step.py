"""python -m benchmarks step: training in each backend: images a second, first step, cost over the bare framework."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import material, results
from benchmarks.process import BackendOptions, Spent, Worker, cpu_ratio, named_backends, ratios
from benchmarks.results import Bar, Chart, Figure, Report
from common import config as configuration
from common.config import DataConfig, ModelConfig, OptimiserConfig, RunConfig
from common.io.progress import ProgressBar
from common.recipes import lfw_small

TARGET = 0.95
SECONDS = 4.0  # approximate length of a turn
COUNTED = 5  # steps in which waits are counted
PEOPLE = {"lfw-small": 336}
OTHERS = 1000  # identities of the other cases
METHOD = (
    "Images per second of the trainer: it reads a record file through the loader (decoding, flips), copies, "
    "normalises, trains, and computes its metrics where a line is logged. The bare loop is the framework's own "
    "(forward, backward, its own SGD), with the same network and loss, on one batch of floats on the device. All "
    "trainers and bare loops of a network take turns, each in a process of its own; a ratio to the bare loop is of two "
    "turns in a row, a ratio to the first trainer is of medians. The processes are started several times, since some "
    "are a tenth faster than others for as long as they live. CPU time is that of all threads. The first step is timed "
    "from the start of the process."
)


@dataclass(frozen=True)
class Options(BackendOptions):
    """Train each network in every backend, by the trainer and by the framework's own loop, in turns."""

    cases: tuple[str, ...] = ("lfw-small", "mobilefacenet")
    """lfw-small (the recipe's network), or a backbone, at 112x112."""
    batch_size: int | None = None
    """Images a step; by default 64 for lfw-small, 32 for mobilefacenet, 8 for another backbone."""
    turns: int = 9
    """Measurements of each; the figure is their median."""
    starts: int = 3
    """Start the processes this many times, for a share of the turns each."""
    variants: tuple[str, ...] = ()
    """More trainers, PyTorch only: bf16, compile, or both as bf16+compile."""


@dataclass
class Loop:
    """A trainer, or a bare loop, of one network, and what was measured of it."""

    case: str
    backend: str
    kind: str  # of work: "training" or "bare"
    variant: str
    images: int = 0  # a turn
    turns: list[Spent] = field(default_factory=list)
    first_steps: list[float] = field(default_factory=list)  # seconds from the start of the process, one a start
    waits: list[str] = field(default_factory=list)  # what made the host wait in COUNTED steps without a logged line

    @property
    def name(self) -> str:
        return f"{self.backend} {self.variant}".strip()

    @property
    def images_per_second(self) -> Figure:
        return results.figure([self.images / spent.seconds for spent in self.turns])

    @property
    def waits_per_step(self) -> str:
        names = ", ".join(sorted(set(self.waits)))
        return f"{len(self.waits) / COUNTED:g}" + (f" ({names})" if names else "")


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


def variant_config(config: RunConfig, variant: str) -> RunConfig:
    """The configuration of a variant: parts joined by "+", each a precision or "compile"."""
    changes: dict[str, Any] = {}
    for part in variant.split("+") if variant else ():
        changes |= {"compile": True} if part == "compile" else {"precision": part}
    return configuration.from_json({**configuration.to_json(config), **changes})


def measure(case: str, backends: Sequence[str], options: Options, folder: Path) -> list[Loop]:
    """The bare loop and the trainers of each backend, in turns: a machine that slows down slows all of them.

    Raises:
        ValueError: a backend cannot run.
    """
    config, num_classes = case_config(case, options.device)
    data = dataclasses.replace(config.data, root=folder / case, kind="record")
    batch_size = options.batch_size or config.optimiser.batch_size
    optimiser = dataclasses.replace(config.optimiser, batch_size=batch_size)
    config = dataclasses.replace(config, data=data, optimiser=optimiser)
    material.write_training_set(data.root, max(2048, 4 * num_classes), num_classes, data.image_size)

    loops: list[Loop] = []
    for backend in backends:
        loops += [Loop(case, backend, "bare", ""), Loop(case, backend, "training", "")]
        if backend == "pytorch":
            loops += [Loop(case, backend, "training", variant) for variant in options.variants]
    steps: dict[str, int] = {}  # a turn, by backend
    with ProgressBar(case, "turns", options.turns) as progress:
        for turns in np.array_split(range(options.turns), options.starts):
            with contextlib.ExitStack() as started:
                workers = []
                for loop in loops:
                    settings = {"config": configuration.to_json(variant_config(config, loop.variant))}
                    worker = Worker(loop.backend, loop.kind, settings | {"classes": num_classes})
                    workers.append(started.enter_context(worker))
                    loop.first_steps.append(worker.seconds)
                    worker.work(2)  # lazily compiled operators, memory pools
                    if loop.backend not in steps:
                        steps[loop.backend] = max(1, round(SECONDS / (worker.work(2).seconds / 2)))
                    loop.images = steps[loop.backend] * batch_size
                for _ in turns:
                    for loop, worker in zip(loops, workers, strict=True):
                        loop.turns.append(worker.work(steps[loop.backend]))
                    progress.update()
                for loop, worker in zip(loops, workers, strict=True):
                    if loop.kind == "training":
                        loop.waits = worker.ask(-COUNTED)["waits"]
    return loops


def beside_bare(loops: Sequence[Loop]) -> list[tuple[Loop, Loop]]:
    """Each trainer with the bare loop of its network and backend."""
    bare = {(loop.case, loop.backend): loop for loop in loops if loop.kind == "bare"}
    return [(loop, bare[loop.case, loop.backend]) for loop in loops if loop.kind == "training"]


def markdown(loops: Sequence[Loop]) -> str:
    """The table: a row a network and trainer."""
    pairs = beside_bare(loops)
    first: dict[str, Loop] = {}  # trainer, by network
    rows = []
    for trainer, bare in pairs:
        base = first.setdefault(trainer.case, trainer)
        rows.append(
            [
                trainer.case,
                trainer.name,
                str(trainer.images_per_second),
                results.number(trainer.images_per_second.median / base.images_per_second.median),
                str(results.figure(ratios(trainer.turns, bare.turns))),
                results.number(cpu_ratio(trainer.turns, bare.turns)),
                trainer.waits_per_step,
                f"{results.figure(trainer.first_steps).median:.1f} s",
            ]
        )
    head = ["network", "trainer", "images/s (lowest, highest)", f"over {pairs[0][0].name}", "over the bare loop"]
    return results.table([*head, "by CPU time", "waits a step", "first step after"], rows)


def charts(loops: Sequence[Loop]) -> list[Chart]:
    pairs = beside_bare(loops)
    bars = [
        Bar(f"{trainer.case} {trainer.name}", results.figure(ratios(trainer.turns, bare.turns)), TARGET)
        for trainer, bare in pairs
    ]
    return [
        Chart("Trainer, data loading included, over the bare framework", "images/s ratio", bars),
        *(
            Chart(
                f"Training {case}",
                "images/s",
                [Bar(trainer.name, trainer.images_per_second) for trainer, _ in pairs if trainer.case == case],
            )
            for case in dict.fromkeys(trainer.case for trainer, _ in pairs)
        ),
    ]


def run(options: Options) -> Report:
    backends = named_backends(options.backends)
    if not 1 <= options.starts <= options.turns:
        raise ValueError(f"turns: expected at least 1, and no more starts, got {options.turns}, {options.starts}")
    with tempfile.TemporaryDirectory(prefix="sface-step-") as folder:
        loops = [loop for case in options.cases for loop in measure(case, backends, options, Path(folder))]
    return Report(markdown(loops), charts(loops), [dataclasses.asdict(loop) for loop in loops])
