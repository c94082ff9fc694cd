"""python -m benchmarks head: the SFace head beside its plain form, a softmax head, and one product of matrices."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.head_inputs import INPUTS, active_share
from benchmarks.machine import machine
from common.config import HeadConfig
from common.files import atomic_write, write_json

Form = Literal["product", "softmax", "plain", "streamed"]


@dataclass(frozen=True)
class Options:
    """Forward and backward to both gradients, each form in turns, in one process; medians, and ratios to one another.

    product: embeddings class_weight' alone; softmax: normalised softmax and cross-entropy; plain: SFace as it is
    written in the paper, by autograd; streamed: SFace as it is trained.
    """

    backend: Literal["pytorch", "mxnet", "jittor"] = "pytorch"
    """Whose head."""
    classes: tuple[int, ...] = (85_742,)
    """Numbers of identities C."""
    batch: int = 256
    """Samples N."""
    dim: int = 512
    """Embedding size D."""
    inputs: tuple[Literal["random", "clustered"], ...] = ("random", "clustered")
    """random: as at the first step; clustered: as when trained."""
    forms: tuple[Form, ...] = ("product", "softmax", "plain", "streamed")
    """What to measure; without the plain form there is no check of the gradients either."""
    turns: int = 7
    """Measurements of each form, after one that does not count."""
    device: str = "cpu"
    """cpu or cuda:N; memory is measured on the CPU."""
    out: Path | None = None
    """Also write head.json and head.md to this folder."""


def measure(options: Options) -> list[dict[str, Any]]:
    """One record for each number of classes and kind of inputs.

    Raises:
        ValueError: a backend cannot run.
    """
    records = []
    cases = [(classes, inputs) for classes in options.classes for inputs in options.inputs]
    for classes, inputs in tqdm(cases, desc=f"head in {options.backend}", unit="case", leave=False):
        case = {
            "backend": options.backend,
            "inputs": inputs,
            "classes": classes,
            "batch": options.batch,
            "dim": options.dim,
            "device": options.device,
        }
        measured = _ask({**case, "forms": options.forms, "turns": options.turns})
        memory = {form: _ask({**case, "memory": form}) for form in options.forms} if options.device == "cpu" else {}
        share = active_share(
            INPUTS[inputs](classes, options.batch, options.dim), HeadConfig(), float(np.finfo(np.float32).eps)
        )
        records.append({**case, "active_share": share, **measured, "memory": memory})
    return records


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """A row a form, in milliseconds; ratios to the forms named in the header."""
    lines = [
        "| C | inputs | active | form | ms (lowest, highest) | of plain | of softmax | of product | MiB | error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        medians = {form: statistics.median(seconds) for form, seconds in record["seconds"].items()}
        for form, seconds in record["seconds"].items():
            low, mid, high = (f"{1000 * value:.0f}" for value in (min(seconds), medians[form], max(seconds)))
            ratios = [
                f"{medians[form] / medians[base]:.2f}" if base in medians else ""
                for base in ("plain", "softmax", "product")
            ]
            memory = record["memory"].get(form)
            beyond = f"{(memory['bytes'] - memory['gradients']) / 2**20:.0f}" if memory else ""
            error = f"{record['errors'][form]:.1e}" if form in record["errors"] and form != "plain" else ""
            cells = [f"{record['classes']:,}", record["inputs"], f"{record['active_share']:.4%}", form]
            lines.append("| " + " | ".join([*cells, f"{mid} ({low}, {high})", *ratios, beyond, error]) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks head", args=arguments)
    if min(options.turns, options.batch, options.dim, *options.classes) < 1 or min(options.classes) < 2:
        raise ValueError(f"expected at least 1 turn, sample and dimension, and 2 classes, got {options}")
    records = measure(options)
    page = markdown(records)
    print(page)
    if options.out is not None:
        with atomic_write(options.out / "head.md", "w") as file:
            file.write(page + "\n")
        write_json(options.out / "head.json", {"machine": machine(), "results": records})
    return 0


def _ask(case: dict[str, Any]) -> dict[str, Any]:
    python = os.environ.get(f"SFACE_PYTHON_{case['backend'].upper()}", sys.executable)
    command = [python, "-m", "benchmarks.head_worker", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{case['backend']}: its process ended with {done.returncode}; it says why above")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
