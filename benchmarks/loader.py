"""python -m benchmarks loader: the loader beside bare decoding, its start on a large file, and its memory."""

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import material, results
from benchmarks.process import Spent, cpu_ratio, ratios
from benchmarks.results import Bar, Chart
from common.datasets.loader import Loader, epoch_flips, epoch_order
from common.datasets.training_sets import RECORD, open_dataset
from common.io import memory

TARGET, FIRST_BATCH_TARGET = 0.9, 2.0
SIZE = 112
SMALL = 16  # width of the images of the large file
MARKS = (0.1, 0.5, 1.0)  # of an epoch
METHOD = (
    "An epoch of a record file through the loader (reading, checks, decoding, flips, RGB planes, batches), over two "
    "bare loops with as many threads on the same bytes, in memory, in the same order: cv2.imdecode alone, without "
    "flips; and with flips and RGB planes into batches, the least that gives the same arrays. In turns, in one "
    "process. The first batch is that of a file of small images: open it, read its index, shuffle, decode."
)


@dataclass(frozen=True)
class Options:
    """Read an epoch through the loader and in bare decoding loops, in turns; then a large file."""

    images: int = 8192
    """112x112 JPEG files of an epoch."""
    workers: int = 2
    """Decoding threads."""
    batch_size: int = 64
    """Images in a batch."""
    turns: int = 7
    """Measurements of each; the figure is their median."""
    large: int = 500_000
    """Images of the large file, 16x16 pixels; 0: none."""
    out: Path | None = None
    """Also write loader.json and loader.md to this folder."""


class Large(NamedTuple):
    """What a large file took."""

    file_bytes: int
    first_batch: list[float]  # seconds, from opening the folder
    resident: list[int]  # bytes at MARKS of an epoch


def rates(options: Options, root: Path) -> dict[str, list[Spent]]:
    """Turns of the loader and of the two bare loops."""
    material.write_training_set(root, options.images, 100, SIZE)
    dataset = open_dataset(root)
    loader = Loader(dataset, options.batch_size, seed=0, workers=options.workers)
    count = loader.steps_per_epoch * options.batch_size
    order, flips = epoch_order(0, 0, options.images)[:count], epoch_flips(0, 0, options.images)
    files = [dataset.sample(int(index)).encoded for index in order]

    def whole() -> None:
        for _ in loader.batches(0, loader.steps_per_epoch):
            pass

    def decode(rows: range) -> None:
        for row in rows:
            cv2.imdecode(np.frombuffer(files[row], np.uint8), cv2.IMREAD_COLOR)

    def decode_to_batch(rows: range) -> None:
        batch = np.empty((len(rows), 3, SIZE, SIZE), np.uint8)
        for image, row in zip(batch, rows, strict=True):
            bgr = cv2.imdecode(np.frombuffer(files[row], np.uint8), cv2.IMREAD_COLOR)
            if flips[row]:
                bgr = cv2.flip(bgr, 1)
            for channel in range(3):
                cv2.extractChannel(bgr, 2 - channel, image[channel])

    part = max(1, options.batch_size // options.workers)
    parts = [range(start, min(start + part, count)) for start in range(0, count, part)]

    def in_threads(work: Callable[[range], None]) -> None:
        with ThreadPoolExecutor(options.workers) as pool:
            for _ in pool.map(work, parts):
                pass

    loops: dict[str, Callable[[], None]] = {
        "loader": whole,
        "decode": lambda: in_threads(decode),
        "decode_to_batch": lambda: in_threads(decode_to_batch),
    }
    turns: dict[str, list[Spent]] = {name: [] for name in loops}
    for turn in tqdm(range(options.turns + 1), desc="decoding", unit="turn", leave=False):
        for name, loop in loops.items():
            spent = _spent(loop)
            if turn:  # the first warms up
                turns[name].append(spent)
    return turns


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
    for step, _ in enumerate(tqdm(loader.batches(0, steps), total=steps, desc="epoch", leave=False, mininterval=2), 1):
        found += [_resident()] * marks.count(step)
    return Large((root / RECORD).stat().st_size, seconds, found)


def markdown(turns: dict[str, list[Spent]], images: int, large: Large | None, options: Options) -> str:
    head = ["loop", "images/s (lowest, highest)", "loader over it", "by CPU time"]
    names = {"decode": "cv2.imdecode alone", "decode_to_batch": "the same, flips, RGB planes", "loader": "loader"}
    rows = [
        [
            names[name],
            str(results.figure([images / turn.seconds for turn in turns[name]])),
            str(results.figure(ratios(turns["loader"], turns[name]))),
            results.number(cpu_ratio(turns["loader"], turns[name])),
        ]
        for name in names
    ]
    lines = [results.table(head, rows), "", f"{options.workers} threads, batches of {options.batch_size}."]
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


def charts(turns: dict[str, list[Spent]], large: Large | None) -> list[Chart]:
    bars = [
        Bar("over cv2.imdecode alone", results.figure(ratios(turns["loader"], turns["decode"])), TARGET),
        Bar("over decoding to batches", results.figure(ratios(turns["loader"], turns["decode_to_batch"])), TARGET),
    ]
    found = [Chart("Loader over bare decoding", "images/s ratio", bars)]
    if large is not None:
        first = Bar("first batch", results.figure(large.first_batch), FIRST_BATCH_TARGET)
        found.append(Chart("Start on a large file", "seconds", [first], more_is_better=False))
        sizes = [
            Bar(f"{share:.0%} of an epoch", results.figure([size / 2**20]))
            for share, size in zip(MARKS, large.resident, strict=True)
        ]
        found.append(Chart("Memory over an epoch of a large file", "resident, MiB", sizes, more_is_better=False))
    return found


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks loader", args=arguments)
    if min(options.turns, options.workers, options.batch_size) < 1 or options.images < options.batch_size:
        raise ValueError(f"expected at least 1 turn, worker and image a batch, and a batch of images, got {options}")
    if 0 < options.large < 1000 or options.large < 0:
        raise ValueError(f"large: expected 0 or at least 1000, got {options.large}")
    ran_on = results.machine()
    memory.keep_freed_memory()  # as the trainers do
    with tempfile.TemporaryDirectory(prefix="sface-loader-") as folder:
        turns = rates(options, Path(folder) / "small")
        large = large_file(options, Path(folder) / "large") if options.large else None
    images = options.images // options.batch_size * options.batch_size
    text = markdown(turns, images, large, options)
    print(text)
    if options.out is not None:
        details: dict[str, Any] = {
            "options": {**dataclasses.asdict(options), "out": None},
            "turns": {name: [turn._asdict() for turn in each] for name, each in turns.items()},
            "large": None if large is None else large._asdict(),
        }
        results.write(
            options.out,
            "loader",
            text=text,
            method=METHOD,
            charts=charts(turns, large),
            ran_on=ran_on,
            details=details,
        )
    return 0


def _spent(work: Callable[[], None]) -> Spent:
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - start, time.process_time() - cpu_start)


def _resident() -> int:
    """Bytes of this process in memory now (Linux; elsewhere its peak)."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else memory.host_peak()
