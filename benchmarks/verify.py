"""python -m benchmarks verify: what verifying pairs costs over the forward passes that it needs."""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import material, results
from benchmarks.process import BackendOptions, Spent, Worker, cpu_ratio, named_backends, ratios
from benchmarks.results import Bar, Chart, Figure, Report
from common import config as configuration
from common.config import DataConfig, ModelConfig, RunConfig
from common.io.progress import tracked

TARGET = 1.05
METHOD = (
    "Seconds from the file of a set of pairs to its figures (reading, decoding, both embeddings of each image, "
    "distances, ten folds, ROC), over those of the framework's own forward passes of as many images, with the same "
    "batch size, on one batch of floats on the device. Each runs in a process of its own, in turns; a ratio is of two "
    "turns in a row."
)


@dataclass(frozen=True)
class Options(BackendOptions):
    """Verify generated pairs, and run the bare forward passes of their images and mirror images, in turns."""

    backbone: str = "iresnet_small"
    """Network. In a small one, everything but the forward passes weighs more."""
    image_size: int = 56
    """Width and height, pixels."""
    pairs: int = 6000
    """Pairs of the set; all their images are different."""
    batch_size: int = 64
    """Images in a forward pass."""


@dataclass(frozen=True)
class Measured:
    """The turns of an evaluation and of the bare forward passes."""

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
    # an image and its mirror image are two passes; a last batch that is smaller counts as a fraction of one
    batches = 4 * options.pairs / options.batch_size
    whole = max(1, round(batches))
    found = Measured(backend, [], [])
    with Worker(backend, "forward", settings) as forward, Worker(backend, "evaluation", settings) as evaluation:
        for _ in tracked(range(options.turns), backend, "turns"):
            spent, factor = forward.work(whole), batches / whole
            found.forward.append(Spent(factor * spent.seconds, factor * spent.cpu_seconds))
            found.evaluation.append(evaluation.work(1))
    return found


def markdown(measured: Sequence[Measured], options: Options) -> str:
    """The table: a row a backend."""
    head = ["backend", "pairs", "network", "evaluation, s", "forward passes, s", "ratio", "by CPU time"]
    rows = [
        [
            one.backend,
            f"{options.pairs:,}",
            f"{options.backbone} at {options.image_size}x{options.image_size}",
            str(results.figure([turn.seconds for turn in one.evaluation])),
            str(results.figure([turn.seconds for turn in one.forward])),
            str(one.ratio),
            results.number(cpu_ratio(one.forward, one.evaluation)),
        ]
        for one in measured
    ]
    return results.table(head, rows)


def run(options: Options) -> Report:
    backends = named_backends(options.backends)
    if min(options.turns, options.batch_size) < 1 or options.pairs < 10:
        raise ValueError(f"expected at least 10 pairs, and 1 turn and image a batch, got {options}")
    with tempfile.TemporaryDirectory(prefix="sface-verify-") as folder:
        pairs = Path(folder) / "pairs.bin"
        material.write_pairs(pairs, options.pairs, options.image_size)
        measured = [measure(backend, options, pairs) for backend in backends]
    bars = [Bar(one.backend, one.ratio, TARGET) for one in measured]
    chart = Chart("Verifying pairs over the bare forward passes", "time ratio", bars, more_is_better=False)
    settings = {**dataclasses.asdict(options), "out": None}
    details = {"options": settings, "turns": [dataclasses.asdict(one) for one in measured]}
    return Report(markdown(measured, options), [chart], details)
