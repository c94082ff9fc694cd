"""python -m benchmarks verify: what verifying pairs costs over the forward passes that it cannot do without."""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from benchmarks import material, results
from benchmarks.process import Spent, Worker, cpu_ratio, named_backends, ratios
from benchmarks.results import Bar, Chart, Figure
from common import config as configuration
from common.config import DataConfig, ModelConfig, RunConfig

TARGET = 1.05
METHOD = (
    "Seconds from the file of a set of pairs to its figures (reading, decoding, both embeddings of each image, "
    "distances, ten folds, ROC) over those of the framework's own forward passes of as many images on one batch "
    "that lies on the device as floats, with the same batch size. Each runs in a process of its own, in turns; a ratio "
    "is of two turns that follow each other."
)


@dataclass(frozen=True)
class Options:
    """Verify generated pairs, and do the bare forward passes of their images and mirror images, in turns."""

    backends: str = "pytorch,mxnet,jittor"
    """Names, separated by commas."""
    backbone: str = "iresnet_small"
    """Network; the smaller it is, the more does all else weigh."""
    image_size: int = 56
    """Width and height, pixels."""
    pairs: int = 6000
    """Pairs of the set; all their images are different."""
    batch_size: int = 64
    """Images in a forward pass."""
    turns: int = 7
    """Measurements of each; the figure is their median."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Also write verify.json and verify.md to this folder."""


@dataclass(frozen=True)
class Measured:
    """An evaluation beside the bare forward passes, turn by turn."""

    backend: str
    evaluation: list[Spent]
    forward: list[Spent]

    @property
    def ratio(self) -> Figure:
        return results.figure(ratios(self.forward, self.evaluation))


def measure(backend: str, options: Options, pairs: Path) -> Measured:
    """One backend's turns.

    Raises:
        ValueError: the backend cannot run.
    """
    config = RunConfig(
        name="verify",
        data=DataConfig(root=Path("unused"), image_size=options.image_size),
        model=ModelConfig(backbone=options.backbone),
        device=options.device,
    )
    settings = {
        "config": configuration.to_json(config),
        "classes": 2,
        "pairs": str(pairs),
        "batch_size": options.batch_size,
    }
    # an image and its mirror image are two passes; the last batch may be smaller, which is counted as a part of one
    batches = 4 * options.pairs / options.batch_size
    whole = max(1, round(batches))
    evaluation: list[Spent] = []
    forward: list[Spent] = []
    workers: list[Worker] = []
    try:
        with tqdm(total=options.turns, desc=backend, unit="turn", leave=False) as progress:
            workers += [Worker(backend, kind, settings) for kind in ("forward", "evaluation")]
            for _ in range(options.turns):
                spent = workers[0].work(whole)
                forward.append(Spent(*(value * batches / whole for value in spent)))
                evaluation.append(workers[1].work(1))
                progress.update()
    finally:
        for worker in workers:
            worker.close()
    return Measured(backend, evaluation, forward)


def markdown(measured: Sequence[Measured], options: Options) -> str:
    """The table: a row a backend."""
    head = ["backend", "pairs", "network", "evaluation, s", "forward passes, s", "ratio", "by CPU time"]
    network = f"{options.backbone} at {options.image_size}x{options.image_size}"
    rows = [
        [
            one.backend,
            f"{options.pairs:,}",
            network,
            str(results.figure([turn.seconds for turn in one.evaluation])),
            str(results.figure([turn.seconds for turn in one.forward])),
            str(one.ratio),
            results.number(cpu_ratio(one.forward, one.evaluation)),
        ]
        for one in measured
    ]
    return results.table(head, rows)


def charts(measured: Sequence[Measured]) -> list[Chart]:
    bars = [Bar(one.backend, one.ratio, TARGET) for one in measured]
    return [Chart("Verifying pairs over the bare forward passes", "time ratio", bars, more_is_better=False)]


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks verify", args=arguments)
    backends = named_backends(options.backends)
    if min(options.turns, options.batch_size) < 1 or options.pairs < 10:
        raise ValueError(f"expected at least 10 pairs, and 1 turn and image a batch, got {options}")
    ran_on = results.machine()
    with tempfile.TemporaryDirectory(prefix="sface-verify-") as folder:
        pairs = Path(folder) / "pairs.bin"
        material.write_pairs(pairs, options.pairs, options.image_size)
        measured = [measure(backend, options, pairs) for backend in backends]
    text = markdown(measured, options)
    print(text)
    if options.out is not None:
        details = [
            {
                "backend": one.backend,
                "evaluation": [turn._asdict() for turn in one.evaluation],
                "forward": [turn._asdict() for turn in one.forward],
            }
            for one in measured
        ]
        settings = {**dataclasses.asdict(options), "out": None}
        results.write(
            options.out,
            "verify",
            text=text,
            method=METHOD,
            charts=charts(measured),
            ran_on=ran_on,
            details={"options": settings, "turns": details},
        )
    return 0
