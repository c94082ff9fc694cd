"""python -m benchmarks loader: the loader beside those of MXNet and PyTorch, its start on a large file, its memory."""

import contextlib
import dataclasses
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks import material, process, results
from benchmarks.process import Worker
from benchmarks.results import Bar, Chart, Report
from common.datasets.loader import Loader
from common.datasets.training_sets import RECORD, open_dataset
from common.io import memory
from common.io.progress import tracked

TARGET, FIRST_BATCH_TARGET = 1.0, 2.0
SIZE = 112
SMALL = 16  # width of the images of the large file
MARKS = (0.1, 0.5, 1.0)  # of an epoch
METHOD = (
    "Images per second of an epoch of a record file of 112x112 JPEG images, read in random order with random flips "
    "into batches: by the project's loader, and by the loaders that a user would pick instead, each with the same "
    "number of threads or processes. They run in processes of their own, in turns; a ratio is of two measurements of "
    "the same turn. Bare cv2.imdecode, of files in memory, makes no batches and is there for information. The first "
    "batch is that of a file of small images: open it, read its index, shuffle, decode."
)


@dataclass(frozen=True)
class Options(process.Options):
    """Read an epoch by each loader, in turns; then start on a large file, and read it once."""

    images: int = 8192
    """112x112 JPEG files of an epoch."""
    workers: int = 2
    """Threads or processes that decode."""
    batch_size: int = 64
    """Images in a batch."""
    large: int = 500_000
    """Images of the large file, 16x16 pixels; 0: none."""


@dataclass
class Measured:
    """A loader and its turns, images a second. `missing` says what to install where it could not run."""

    label: str
    backend: str  # of `benchmarks.backends`
    name: str  # that its `open_loader` knows
    target: float | None = TARGET  # of our loader over this one
    rates: list[float] = field(default_factory=list)
    missing: str = ""


class Large(NamedTuple):
    """Figures of a large file."""

    file_bytes: int
    first_batch: list[float]  # seconds, from opening the folder
    resident: list[int]  # bytes at MARKS of an epoch


def measure(options: Options, root: Path) -> list[Measured]:
    """Turns of each loader on the record file in `root`; the project's own comes first.

    Raises:
        ValueError: a loader that is installed failed.
    """
    loaders = [
        Measured("this project's loader", "opencv", "loader", target=None),
        Measured("MXNet ImageRecordIter", "mxnet", "ImageRecordIter"),
        Measured("PyTorch DataLoader, OpenCV", "pytorch", "opencv"),
        Measured("PyTorch DataLoader, as in arcface_torch", "pytorch", "arcface_torch"),
        Measured("bare cv2.imdecode", "opencv", "decode", target=None),
    ]
    settings = {"root": str(root), "size": SIZE, "batch_size": options.batch_size, "workers": options.workers}
    with contextlib.ExitStack() as started:
        workers = []
        for loader in loaders:
            worker = started.enter_context(Worker(loader.backend, "loader", settings | {"name": loader.name}))
            loader.missing = worker.facts.get("missing", "")
            if not loader.missing:
                workers.append((loader, worker))
        for _ in tracked(range(options.turns), "loaders", "turns"):
            for loader, worker in workers:
                answer = worker.ask(1)
                loader.rates.append(answer["images"] / answer["seconds"])
    return loaders


def large_file(options: Options, root: Path) -> Large:
    """Write a large file, start on it `turns` times, and read one epoch of it."""
    material.write_training_set(root, options.large, 1000, SMALL)

    def opened() -> Loader:
        dataset = open_dataset(root)
        return Loader(dataset, 256, seed=0, image_size=SMALL, workers=options.workers)

    seconds = []
    for _ in range(options.turns):
        start = time.perf_counter()
        batches = opened().batches(0, 10**9)
        next(batches)
        seconds.append(time.perf_counter() - start)
        batches.close()
    loader = opened()
    steps = loader.steps_per_epoch
    marks = [max(1, round(share * steps)) for share in MARKS]
    found = []
    for step, _ in enumerate(tracked(loader.batches(0, steps), "epoch", "steps", steps), 1):
        found += [_resident()] * marks.count(step)
    return Large((root / RECORD).stat().st_size, seconds, found)


def ours_over(loader: Measured, ours: Measured) -> results.Figure:
    return results.figure([own / other for own, other in zip(ours.rates, loader.rates, strict=True)])


def markdown(loaders: Sequence[Measured], large: Large | None, options: Options) -> str:
    head = ["loader", "images/s (lowest, highest)", "this project's loader over it"]
    rows = [
        [loader.label, str(results.figure(loader.rates)), str(ours_over(loader, loaders[0]))]
        for loader in loaders
        if not loader.missing
    ]
    lines = [results.table(head, rows), ""]
    lines += [f"not measured: {loader.label}: {loader.missing}" for loader in loaders if loader.missing]
    lines.append(f"{options.workers} threads or processes, batches of {options.batch_size}.")
    if large is not None:
        resident = ", ".join(
            f"{size / 2**20:.0f} MiB at {share:.0%}" for share, size in zip(MARKS, large.resident, strict=True)
        )
        lines += [
            "",
            f"A file of {options.large:,} images ({large.file_bytes / 2**20:.0f} MiB): first batch after "
            f"{results.figure(large.first_batch)} s; resident over an epoch: {resident}.",
        ]
    return "\n".join(lines)


def charts(loaders: Sequence[Measured], large: Large | None) -> list[Chart]:
    bars = [
        Bar(loader.label, ours_over(loader, loaders[0]), loader.target) for loader in loaders[1:] if not loader.missing
    ]
    found = [Chart("The project's loader over others", "images/s ratio", bars)]
    if large is not None:
        first = Bar("first batch", results.figure(large.first_batch), FIRST_BATCH_TARGET)
        found.append(Chart("Start on a large file", "seconds", [first], more_is_better=False))
        sizes = [
            Bar(f"{share:.0%} of an epoch", results.figure([size / 2**20]))
            for share, size in zip(MARKS, large.resident, strict=True)
        ]
        found.append(Chart("Memory over an epoch of a large file", "resident, MiB", sizes, more_is_better=False))
    return found


def run(options: Options) -> Report:
    if min(options.turns, options.workers, options.batch_size) < 1 or options.images < options.batch_size:
        raise ValueError(f"expected at least 1 turn, worker and image a batch, and a batch of images, got {options}")
    if 0 < options.large < 1000 or options.large < 0:
        raise ValueError(f"large: expected 0 or at least 1000, got {options.large}")
    with tempfile.TemporaryDirectory(prefix="sface-loader-") as folder:
        small = Path(folder) / "small"
        material.write_training_set(small, options.images, 100, SIZE)
        loaders = measure(options, small)
        memory.keep_freed_memory()  # as the trainers do
        large = large_file(options, Path(folder) / "large") if options.large else None
    details = {
        "options": {**dataclasses.asdict(options), "out": None},
        "loaders": [dataclasses.asdict(loader) for loader in loaders],
        "large": None if large is None else large._asdict(),
    }
    return Report(markdown(loaders, large, options), charts(loaders, large), details)


def _resident() -> int:
    """Bytes of this process in memory now (Linux; elsewhere its peak)."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else memory.host_peak()
