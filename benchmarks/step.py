"""python -m benchmarks step: what the trainer costs over the bare framework, data loading included, and its waits."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import material, results
from benchmarks.process import Spent, Worker, cpu_ratio, named_backends, ratios
from benchmarks.results import Bar, Chart, Figure
from benchmarks.speed import case_config
from common import config as configuration
from common.config import RunConfig

TARGET = 0.95
SECONDS = 4.0  # about so long is one turn
COUNTED = 5  # steps in which waits are counted
METHOD = (
    "Images per second of the trainer, which reads a record file through the loader (decoding, flips), copies, "
    "normalises, trains and looks at its metrics where a line is logged, over those of the framework's own loop "
    "(forward, backward, its own SGD) with the same network and loss on one batch that lies on the device as floats. "
    "Each runs in a process of its own, in turns; a ratio is of two turns that follow each other. Processes start anew "
    "in between, since some are, as long as they live, a tenth faster than their like. CPU time is that of all threads."
)


@dataclass(frozen=True)
class Options:
    """Train each network through the whole training path and in the framework's own loop, in turns."""

    backends: str = "pytorch,mxnet,jittor"
    """Names, separated by commas."""
    cases: tuple[str, ...] = ("lfw-small", "mobilefacenet")
    """lfw-small (the recipe's network), or a backbone, at 112x112."""
    batch_size: int | None = None
    """Images a step; by default the recipe's for lfw-small, 32 for mobilefacenet, 8 for another backbone."""
    turns: int = 9
    """Measurements of each; the figure is their median."""
    starts: int = 3
    """The processes start so often anew, for a share of the turns each."""
    variants: tuple[str, ...] = ()
    """Of PyTorch's trainer, beside fp32: bf16, compile, both as bf16+compile."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Also write step.json and step.md to this folder."""


@dataclass(frozen=True)
class Measured:
    """A trainer beside the bare loop, turn by turn."""

    case: str
    backend: str
    variant: str
    images: int  # a turn
    trainer: list[Spent]
    bare: list[Spent]
    waits: list[str]  # what made the host wait in COUNTED steps without a logged line

    @property
    def images_per_second(self) -> Figure:
        return results.figure([self.images / spent.seconds for spent in self.trainer])

    @property
    def ratio(self) -> Figure:
        return results.figure(ratios(self.trainer, self.bare))

    @property
    def waits_per_step(self) -> str:
        names = ", ".join(sorted(set(self.waits)))
        return f"{len(self.waits) / COUNTED:g}" + (f" ({names})" if names else "")


def variant_config(config: RunConfig, variant: str) -> RunConfig:
    """The configuration of a variant: parts joined by "+", each a precision or "compile"."""
    changes: dict[str, Any] = {}
    for part in variant.split("+") if variant else ():
        changes |= {"compile": True} if part == "compile" else {"precision": part}
    return configuration.from_json({**configuration.to_json(config), **changes})


def measure(case: str, backend: str, options: Options, folder: Path) -> list[Measured]:
    """The trainer as it is and its variants beside the bare loop, all of one backend in turns.

    Raises:
        ValueError: a backend cannot run.
    """
    config, num_classes = case_config(case, options.device)
    data = dataclasses.replace(config.data, root=folder / case, kind="record")
    batch_size = options.batch_size or config.optimiser.batch_size
    optimiser = dataclasses.replace(config.optimiser, batch_size=batch_size)
    config = dataclasses.replace(config, data=data, optimiser=optimiser)
    if not data.root.exists():
        material.write_training_set(data.root, max(2048, 4 * num_classes), num_classes, data.image_size)

    def settings(variant: str) -> dict[str, Any]:
        return {"config": configuration.to_json(variant_config(config, variant)), "classes": num_classes}

    names = ["", *options.variants] if backend == "pytorch" else [""]
    kinds = [("bare", ""), *(("training", name) for name in names)]
    spent: list[list[Spent]] = [[] for _ in kinds]
    waits: list[list[str]] = []
    steps = 0
    with tqdm(total=options.turns, desc=f"{case} {backend}", unit="turn", leave=False) as progress:
        for turns in np.array_split(range(options.turns), options.starts):
            with contextlib.ExitStack() as started:
                workers: list[Worker] = []
                for kind, name in kinds:
                    workers.append(started.enter_context(contextlib.closing(Worker(backend, kind, settings(name)))))
                for worker in workers:  # lazily compiled operators, memory pools
                    worker.work(2)
                steps = steps or max(1, round(SECONDS / (workers[0].work(2).seconds / 2)))
                for _ in turns:
                    for worker, turn in zip(workers, spent, strict=True):
                        turn.append(worker.work(steps))
                    progress.update()
                waits = [worker.ask(-COUNTED)["waits"] for worker in workers[1:]]
    images = steps * batch_size
    return [
        Measured(case, backend, name, images, turns_of, spent[0], seen)
        for name, turns_of, seen in zip(names, spent[1:], waits, strict=True)
    ]


def markdown(measured: Sequence[Measured]) -> str:
    """The table: a row a network and trainer."""
    head = ["network", "trainer", "images/s (lowest, highest)", "over the bare loop", "by CPU time", "waits a step"]
    rows = [
        [
            one.case,
            " ".join(filter(None, (one.backend, one.variant))),
            str(one.images_per_second),
            str(one.ratio),
            results.number(cpu_ratio(one.trainer, one.bare)),
            one.waits_per_step,
        ]
        for one in measured
    ]
    return results.table(head, rows)


def charts(measured: Sequence[Measured]) -> list[Chart]:
    bars = [Bar(f"{one.case} {one.backend} {one.variant}".strip(), one.ratio, TARGET) for one in measured]
    return [Chart("Trainer, data loading included, over the bare framework", "images/s ratio", bars)]


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks step", args=arguments)
    backends = named_backends(options.backends)
    if not 1 <= options.starts <= options.turns:
        raise ValueError(f"turns: expected at least 1, and no more starts, got {options.turns}, {options.starts}")
    ran_on = results.machine()
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="sface-step-") as folder:
        for case in options.cases:
            for backend in backends:
                measured += measure(case, backend, options, Path(folder))
    text = markdown(measured)
    print(text)
    if options.out is not None:
        details = [
            {**dataclasses.asdict(one), **{k: [t._asdict() for t in getattr(one, k)] for k in ("trainer", "bare")}}
            for one in measured
        ]
        results.write(
            options.out, "step", text=text, method=METHOD, charts=charts(measured), ran_on=ran_on, details=details
        )
    return 0
