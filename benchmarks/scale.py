"""python -m benchmarks scale: a step of the head on several ranks, as classes grow, and a projection to many GPUs."""

import importlib
import itertools
import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import process, results
from benchmarks.process import Worker
from benchmarks.results import Bar, Chart, Report
from common.io.files import read_json, write_json
from common.io.memory import host_peak
from common.io.progress import tracked

FORMS = ("data parallel", "sharded softmax", "sharded sface")
EXCHANGE = "exchange"  # the communication of sharded sface, without a head
Record = dict[str, Any]
METHOD = (
    "PyTorch, Gloo over loopback, one thread a rank. A step is forward, backward to the embeddings and update of the "
    "prototypes; the slowest rank counts. Bytes are those that the loopback device carried, divided by the number of "
    "ranks, so nothing else should use it. Memory is the peak of a rank beyond what it had before the head was made."
)


@dataclass(frozen=True)
class Options(process.Options):
    """Measure SFace data parallel and in shards of classes, and a softmax in shards; fit a model; project to GPUs."""

    classes: tuple[int, ...] = (100_000, 300_000, 1_000_000, 4_000_000)
    """Numbers of identities C."""
    ranks: tuple[int, ...] = (2,)
    """Numbers of processes K."""
    batch: int = 64
    """Samples of a rank."""
    dim: int = 64
    """Embedding size D. At 4 million identities, the 12 C D bytes of a data-parallel rank are 3 GB."""
    turns: int = 3
    """Measurements of each; the figure is their median."""
    gpu_batch: int = 128
    """Projection: samples of a GPU."""
    gpu_dim: int = 512
    """Projection: embedding size."""
    sface_tflops: float = 33.9
    """Projection: 6 N C D operations over the seconds of a step of SFace's head on a GPU; an H100's by default."""
    softmax_tflops: float = 27.8
    """Projection: the same of a normalised softmax."""
    bandwidth: float = 50.0
    """Projection: network bandwidth of a GPU, GB/s each way; 400 Gbit/s by default."""


def measure(options: Options) -> list[Record]:
    """A record a case.

    Raises:
        ValueError: a case could not run.
    """
    cases = [
        {"form": form, "classes": classes, "batch": options.batch, "dim": options.dim, "turns": options.turns}
        for classes in options.classes
        for form in (FORMS if classes > min(options.classes) else (*FORMS, EXCHANGE))
    ]
    records = []
    for ranks, case in tracked([(ranks, case) for ranks in options.ranks for case in cases], "scale", "cases"):
        with Worker("pytorch", "ranks", {**case, "ranks": ranks}) as worker:
            records.append(worker.facts)
    return records


def measure_ranks(backend: str, case: Record) -> Record:
    """The record of a case, measured by `case["ranks"]` processes of this host.

    It has the seconds of each turn, the bytes that loopback carried for a rank in it, and the peak memory of the rank
    with the most.
    """
    launcher = importlib.import_module("pytorch_impl.launcher")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "record.json"
        settings = json.dumps({**case, "found": str(found)})
        launcher.launch(case["ranks"], [backend, "rank", settings], module="benchmarks.worker")
        return {**case, **read_json(found, "what rank 0 measured")}


def measure_rank(_backend: str, case: Record) -> Record:
    """Measure steps of a head in one rank of a job; rank 0 writes what was found to `case["found"]`."""
    forms = importlib.import_module("benchmarks.backends.pytorch.sharded_forms")
    ranks = forms.group()
    before = host_peak()
    step = forms.sharded_forms(case["form"], case["classes"], case["batch"], case["dim"])
    step()
    seconds, sent = [], []
    for _ in range(case["turns"]):
        ranks.total(0)
        carried, start = loopback_bytes(), time.perf_counter()
        step()
        ranks.total(0)
        seconds.append(time.perf_counter() - start)
        sent.append((loopback_bytes() - carried) / ranks.count)
    used = [ranks.total(host_peak() - before if rank == ranks.rank else 0) for rank in range(ranks.count)]
    if ranks.rank == 0:
        write_json(Path(case["found"]), {"seconds": seconds, "sent": sent, "memory": max(used)})
    return {}


def loopback_bytes() -> int:
    """Bytes that the loopback device has carried since it came up, whoever sent them (Linux)."""
    found = re.search(r"^\s*lo:\s*(\d+)", Path("/proc/net/dev").read_text("ascii"), re.MULTILINE)
    if found is None:
        raise OSError("/proc/net/dev: expected a line of the device lo, found none")
    return int(found[1])


def bytes_sent(form: str, ranks: int, batch: int, classes: int, dim: int) -> float:
    """Bytes that a rank must send in a step, with float32 values, int64 labels and ring collectives.

    An all-reduce of M bytes sends 2 M (K - 1) / K; an all-gather to M bytes, or a reduce-scatter of M, half of that.
    """
    share, samples = (ranks - 1) / ranks, ranks * batch
    if form == "data parallel":
        return share * 8 * classes * dim
    exchanged = share * samples * (2 * 4 * dim + 8)
    # SFace: own cosines and nearest others (for the accuracy); softmax: maxima and sums
    return exchanged + share * samples * 2 * 8


def fit(records: Sequence[Record]) -> dict[str, tuple[float, float, float]]:
    """For each form, a step's time as constant + slope * entries of the rank's class_weight.

    Returns:
        By form: the constant (seconds), the slope (seconds an entry), and the largest relative error of the model.
    """
    found = {}
    for form in FORMS:
        of_form = [record for record in records if record["form"] == form]
        held = np.array([_held(r) for r in of_form])
        seconds = np.array([np.median(r["seconds"]) for r in of_form])
        # least squares of relative errors: with absolute ones the largest case would decide alone
        design = np.stack([np.ones_like(held), held], 1) / seconds[:, None]
        constant, slope = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)[0]
        error = np.abs((constant + slope * held) / seconds - 1).max()
        found[form] = float(constant), float(slope), float(error)
    return found


def measured_table(records: Sequence[Record]) -> str:
    head = ["C", "ranks", "head", "ms a step (lowest, highest)", "bytes sent a rank", "model"]
    rows = []
    for r in records:
        case = [f"{r['classes']:,}", str(r["ranks"]), r["form"], str(results.figure(r["seconds"], 1000))]
        needed = bytes_sent(r["form"], r["ranks"], r["batch"], r["classes"], r["dim"])
        numbers = np.median(r["sent"]), needed, r["memory"] / 2**20, 12 * _held(r) / 2**20
        rows.append(case + [f"{number:,.0f}" for number in numbers])
    return results.table([*head, "MiB a rank", "12 C D, MiB"], rows)


def fit_table(records: Sequence[Record]) -> str:
    head = ["head", "ms + ns an entry of class_weight that a rank holds", "largest error"]
    rows = [
        [form, f"{results.number(1e3 * constant)} + {results.number(1e9 * slope)}", f"{error:.0%}"]
        for form, (constant, slope, error) in fit(records).items()
    ]
    return results.table(head, rows)


def projection(options: Options) -> str:
    """The table of a GPU's compute and network time, bytes sent and memory, by the model."""
    head = ["identities", "GPUs", "head", "ms compute", "ms network", "MB sent", "GB held"]
    rows = []
    for classes, ranks, form in itertools.product((10**7, 10**8), (8, 64, 512), FORMS):
        tflops = options.softmax_tflops if form == "sharded softmax" else options.sface_tflops
        shards = 1 if form == "data parallel" else ranks
        samples, held = options.gpu_batch * shards, classes * options.gpu_dim / shards
        sent = bytes_sent(form, ranks, options.gpu_batch, classes, options.gpu_dim)
        milliseconds = 1e3 * 6 * samples * held / (1e12 * tflops), 1e3 * sent / (1e9 * options.bandwidth)
        numbers = map(results.number, (*milliseconds, sent / 1e6, 12 * held / 1e9))
        rows.append([f"{classes:.0e}".replace("e+0", "e"), str(ranks), form, *numbers])
    return results.table(head, rows)


def run(options: Options) -> Report:
    if min(options.turns, options.batch, options.dim, *options.ranks) < 1 or min(options.classes) < max(options.ranks):
        raise ValueError(f"expected at least 1 turn, sample, dimension and rank, and a class a rank, got {options}")
    records = measure(options)
    page = [
        measured_table(records),
        fit_table(records),
        f"{options.gpu_batch} samples a GPU, D {options.gpu_dim}, SFace {options.sface_tflops:g} and softmax "
        f"{options.softmax_tflops:g} TFLOP/s, {options.bandwidth:g} GB/s. Not measured:",
        projection(options),
    ]
    charts = []
    for classes in options.classes:
        of_size = [r for r in records if r["classes"] == classes]
        bars = [Bar(f"{r['form']}, {r['ranks']} ranks", results.figure(r["seconds"], 1000)) for r in of_size]
        charts.append(Chart(f"A step of the head, {classes:,} identities", "ms", bars, more_is_better=False))
    return Report("\n\n".join(page), charts, records)


def _held(record: Record) -> float:
    """Entries of class_weight on a rank."""
    if record["form"] == EXCHANGE:
        return 0
    parts = 1 if record["form"] == "data parallel" else record["ranks"]
    return record["classes"] * record["dim"] / parts
