"""python -m benchmarks scale: a step of the head on several ranks, over C, and what it would be on many GPUs."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks import results
from benchmarks.results import Bar, Chart
from common.io.files import read_json, write_json

FORMS = ("data parallel", "sharded softmax", "sharded sface")
EXCHANGE = "exchange"  # all that ranks of sharded sface wait for, without a head
Record = dict[str, Any]
METHOD = (
    "PyTorch, Gloo over loopback, one thread a rank. A step is forward, backward to the embeddings and update of the "
    "prototypes; the slowest of the ranks counts. Bytes are those that the loopback device carried, divided by the "
    "ranks; so nothing else should use it. Memory is the peak of a rank beyond what it had before the head was made."
)


@dataclass(frozen=True)
class Options:
    """Measure SFace data parallel and in shards of classes, and a softmax in shards; fit a model; print it for GPUs."""

    classes: tuple[int, ...] = (100_000, 300_000, 1_000_000, 4_000_000)
    """Numbers of identities C."""
    ranks: tuple[int, ...] = (2,)
    """Numbers of processes K."""
    batch: int = 64
    """Samples of a rank."""
    dim: int = 64
    """Embedding size D: at 4 million identities, 12 C D bytes of a data-parallel rank are 3 GB."""
    turns: int = 3
    """Measurements of each."""
    gpu_batch: int = 128
    """Samples of a GPU, for the projection."""
    gpu_dim: int = 512
    """Embedding size, for the projection."""
    sface_tflops: float = 33.9
    """6 N C D operations over the seconds of a step of SFace's head on a GPU; the default was measured on an H100."""
    softmax_tflops: float = 27.8
    """The same of a normalised softmax."""
    bandwidth: float = 50.0
    """Of the network, GB/s each way and GPU; the default is 400 Gbit/s."""
    out: Path | None = None
    """Also write scale.json and scale.md to this folder."""


def measure(options: Options) -> list[Record]:
    """A record a case; a ValueError says that one could not run."""
    cases = [
        {"form": form, "classes": classes, "batch": options.batch, "dim": options.dim, "turns": options.turns}
        for classes in options.classes
        for form in (FORMS if classes > min(options.classes) else (*FORMS, EXCHANGE))
    ]
    records = []
    with tempfile.TemporaryDirectory(prefix="sface-scale-") as name:
        given, found = Path(name) / "case.json", Path(name) / "found.json"
        for case in tqdm([(case, ranks) for ranks in options.ranks for case in cases], unit="case", leave=False):
            write_json(given, case[0])
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case[1])]
            command = [*torchrun, "-m", "benchmarks.scale_worker", str(given), str(found)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(f"{json.dumps(case[0])} on {case[1]} ranks failed: {done.stderr[-2000:]}")
            records.append(read_json(found, "what was measured"))
    return records


def bytes_sent(form: str, ranks: int, batch: int, classes: int, dim: int) -> float:
    """What a rank must send in a step, float32 and int64 labels, collectives in rings.

    An all-reduce of M bytes sends 2 M (K - 1) / K, an all-gather to M bytes and a reduce-scatter of M half of that.
    """
    share, samples = (ranks - 1) / ranks, ranks * batch
    if form == "data parallel":
        return share * 8 * classes * dim
    exchanged = share * samples * (2 * 4 * dim + 8)
    # SFace: own cosines and nearest others (for the accuracy); softmax: maxima and sums
    return exchanged + share * samples * 2 * 8


def fit(records: Sequence[Record]) -> dict[str, tuple[float, float, float]]:
    """By form: seconds a step, seconds an entry of the rank's class_weight, and the largest relative error of both."""
    found = {}
    for form in FORMS:
        of_form = [record for record in records if record["form"] == form]
        held = np.array([_held(r) for r in of_form])
        seconds = np.array([np.median(r["seconds"]) for r in of_form])
        # relative errors count: else the largest case would decide alone
        design = np.stack([np.ones_like(held), held], 1) / seconds[:, None]
        constant, slope = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)[0]
        error = np.abs((constant + slope * held) / seconds - 1).max()
        found[form] = float(constant), float(slope), float(error)
    return found


def measured_table(records: Sequence[Record]) -> str:
    head = [
        "C",
        "ranks",
        "head",
        "ms a step (lowest, highest)",
        "bytes sent a rank",
        "model",
        "MiB a rank",
        "12 C D, MiB",
    ]
    rows = []
    for r in records:
        needed = bytes_sent(r["form"], r["ranks"], r["batch"], r["classes"], r["dim"])
        rows.append(
            [
                f"{r['classes']:,}",
                str(r["ranks"]),
                r["form"],
                str(results.figure([1000 * s for s in r["seconds"]])),
                f"{np.median(r['sent']):,.0f}",
                f"{needed:,.0f}",
                f"{r['memory'] / 2**20:,.0f}",
                f"{12 * _held(r) / 2**20:,.0f}",
            ]
        )
    return results.table(head, rows)


def fit_table(records: Sequence[Record]) -> str:
    head = ["head", "ms + ns an entry of class_weight that a rank holds", "largest error"]
    rows = [
        [form, f"{results.number(1e3 * constant)} + {results.number(1e9 * slope)}", f"{error:.0%}"]
        for form, (constant, slope, error) in fit(records).items()
    ]
    return results.table(head, rows)


def projection(options: Options) -> str:
    """Milliseconds, gigabytes sent and gigabytes held of a GPU."""
    head = ["identities", "GPUs", "head", "ms compute", "ms network", "MB sent", "GB held"]
    rows = []
    for classes in (10**7, 10**8):
        for ranks in (8, 64, 512):
            for form in FORMS:
                tflops = options.softmax_tflops if form == "sharded softmax" else options.sface_tflops
                is_whole = form == "data parallel"
                samples = options.gpu_batch * (1 if is_whole else ranks)
                held = classes * options.gpu_dim / (1 if is_whole else ranks)
                sent = bytes_sent(form, ranks, options.gpu_batch, classes, options.gpu_dim)
                rows.append(
                    [
                        f"{classes:.0e}".replace("e+0", "e"),
                        str(ranks),
                        form,
                        results.number(1e3 * 6 * samples * held / (1e12 * tflops)),
                        results.number(1e3 * sent / (1e9 * options.bandwidth)),
                        results.number(sent / 1e6),
                        results.number(12 * held / 1e9),
                    ]
                )
    return results.table(head, rows)


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks scale", args=arguments)
    if min(options.turns, options.batch, options.dim, *options.ranks) < 1 or min(options.classes) < max(options.ranks):
        raise ValueError(f"expected at least 1 turn, sample, dimension and rank, and a class a rank, got {options}")
    ran_on = results.machine()
    records = measure(options)
    page = "\n\n".join(
        [
            measured_table(records),
            fit_table(records),
            f"{options.gpu_batch} samples a GPU, D {options.gpu_dim}, SFace {options.sface_tflops:g} and softmax "
            f"{options.softmax_tflops:g} TFLOP/s, {options.bandwidth:g} GB/s. Not measured:",
            projection(options),
        ]
    )
    print(page)
    if options.out is not None:
        charts = [
            Chart(
                f"A step of the head, {classes:,} identities",
                "ms",
                [
                    Bar(f"{r['form']}, {r['ranks']} ranks", results.figure([1000 * s for s in r["seconds"]]))
                    for r in records
                    if r["classes"] == classes
                ],
                more_is_better=False,
            )
            for classes in options.classes
        ]
        results.write(options.out, "scale", text=page, method=METHOD, charts=charts, ran_on=ran_on, details=records)
    return 0


def _held(record: Record) -> float:
    """Entries of class_weight on a rank."""
    if record["form"] == EXCHANGE:
        return 0
    parts = 1 if record["form"] == "data parallel" else record["ranks"]
    return record["classes"] * record["dim"] / parts
