"""python -m benchmarks head: the SFace head beside its plain form, a softmax head and one matrix product."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks import process, results
from benchmarks.head import figures
from benchmarks.head.figures import extra_mib
from benchmarks.head.inputs import ACTIVE, INPUTS, SMALL, active_share, center_for
from benchmarks.process import Worker, named_backends
from benchmarks.results import Bar, Chart, Report
from common.config import HeadConfig
from common.io.progress import tracked

Form = Literal["product", "softmax", "plain", "streamed", "update", "dense", "compiled", "screened", "partial-fc"]
PYTORCHS = ("dense", "compiled", "screened", "partial-fc")
EPSILON = float(np.finfo(np.float32).eps)
Record = dict[str, Any]
"""A case with, for each form, the seconds of its turns, the error of its gradients, and its memory."""

METHOD = (
    "Forward and backward to the gradients of embeddings and class_weight, float32. The forms of a case take turns in "
    "one process; in a turn a form runs twice, and the second run counts. Memory is measured in another process, and "
    "is what a form takes beyond its inputs and gradients."
)


@dataclass(frozen=True)
class Options(process.Options):
    """Forward and backward to both gradients, each form in turns, in one process; medians, and ratios to one another.

    product: embeddings class_weight' alone; softmax: normalised softmax and cross-entropy; plain: SFace as it is
    written in the paper, by autograd; streamed: SFace as it is trained; update: the optimiser's step of the prototypes;
    dense, compiled (PyTorch): streamed, but every entry counts, as on a GPU, and that with a compiled kernel; screened
    (PyTorch): streamed, with the entries that count found among float16 products; partial-fc (PyTorch): the softmax
    over a tenth of the classes. Of classes, batch and dim one varies at a time, the others have their first value; all
    with each of the inputs.
    """

    backend: str = "pytorch"
    """Whose head: pytorch, mxnet or jittor."""
    classes: tuple[int, ...] = (85_742,)
    """Numbers of identities C."""
    batch: tuple[int, ...] = (256,)
    """Numbers of samples N."""
    dim: tuple[int, ...] = (512,)
    """Embedding sizes D."""
    inputs: tuple[Literal["random", "clustered"], ...] = ("random", "clustered")
    """random: as at the first step; clustered: as when trained."""
    small: bool = False
    """Instead: random small problems, each with b such that 0.005, 5, 50 and 100 % of the pushes count."""
    forms: tuple[Form, ...] = ("product", "softmax", "plain", "streamed")
    """What to measure. Gradients are checked against the plain form, if that is measured."""
    device: str = "cpu"
    """cpu or cuda:N; memory is measured on the CPU only."""


def measure(options: Options) -> list[Record]:
    """One record a case.

    Raises:
        ValueError: a backend cannot run.
    """
    records = []
    for case in tracked(list(_cases(options)), f"head in {options.backend}", "cases"):
        measured = ask("head", {**case, "forms": options.forms, "turns": options.turns})
        measures_memory = options.device == "cpu" and not options.small
        memory = {form: ask("head memory", {**case, "form": form}) for form in options.forms if measures_memory}
        inputs = INPUTS[case["inputs"]](case["classes"], case["batch"], case["dim"])
        share = active_share(inputs, HeadConfig(inter_center=case["inter_center"]), EPSILON)
        records.append({**case, "active_share": share, **measured, "memory": memory})
    return records


def _cases(options: Options) -> Iterator[Record]:
    same, b = {"backend": options.backend, "device": options.device}, HeadConfig().inter_center
    if options.small:
        for (batch, classes, dim), share in itertools.product(SMALL, ACTIVE):
            center = center_for(INPUTS["random"](classes, batch, dim), share, HeadConfig(), EPSILON)
            size = {"classes": classes, "batch": batch, "dim": dim}
            yield {**same, **size, "inputs": "random", "inter_center": center}
        return
    first = {name: getattr(options, name)[0] for name in ("classes", "batch", "dim")}
    sizes = [first, *(first | {name: value} for name in first for value in getattr(options, name)[1:])]
    for size, inputs in itertools.product(sizes, options.inputs):
        yield {**same, **size, "inputs": inputs, "inter_center": b}


def ask(kind: str, case: Record) -> Record:
    """What a worker measures of a case."""
    with Worker(case["backend"], kind, case) as worker:
        return worker.facts


def markdown(records: Sequence[Record]) -> str:
    """A row a form, in milliseconds; ratios of medians to the forms named in the header."""
    head = ["C", "N", "D", "inputs", "active", "form", "ms", "of plain", "of softmax", "of product", "MiB", "error"]
    rows = []
    for record in records:
        figures = {form: results.figure(turns, 1000) for form, turns in record["seconds"].items()}
        case = [f"{record['classes']:,}", str(record["batch"]), str(record["dim"]), record["inputs"]]
        for form, figure in figures.items():
            ratios = [
                results.number(figure.median / figures[base].median) if base in figures else ""
                for base in ("plain", "softmax", "product")
            ]
            memory = f"{extra_mib(record, form):.0f}" if form in record["memory"] else ""
            error = f"{record['errors'][form]:.1e}" if form in record["errors"] and form != "plain" else ""
            rows.append([*case, f"{record['active_share']:.4%}", form, str(figure), *ratios, memory, error])
    return results.table(head, rows)


def charts(records: Sequence[Record]) -> list[Chart]:
    """A chart a case."""
    return [
        Chart(
            f"{r['backend']}, {r['classes']:,} identities, {r['batch']} x {r['dim']}, {r['inputs']}, "
            f"{r['active_share']:.3%} active",
            "ms",
            [Bar(form, results.figure(turns, 1000)) for form, turns in r["seconds"].items()],
            more_is_better=False,
        )
        for r in records
    ]


def run(options: Options) -> Report:
    if min(options.turns, *options.batch, *options.dim) < 1 or min(options.classes) < 2:
        raise ValueError(f"expected at least 1 turn, sample and dimension, and 2 classes, got {options}")
    named_backends(options.backend)
    if options.backend != "pytorch" and set(PYTORCHS) & set(options.forms):
        raise ValueError(f"forms: {', '.join(PYTORCHS)} are PyTorch's alone, not {options.backend}'s")
    records = measure(options)
    return Report(markdown(records), charts(records), records, {"head.svg": figures.growth(records)})
