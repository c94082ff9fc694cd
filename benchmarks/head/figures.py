"""The figure of a head's cost as classes, samples and dimensions grow, beside the work of one matrix product."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

from benchmarks import results
from common.reports.plots import BLUE, GREEN, INK, STYLE, VERMILION, axes_grid, svg

COLOURS = {"product": INK, "softmax": VERMILION, "plain": GREEN, "streamed": BLUE}
Record = dict[str, Any]
AXES = {"classes": "identities C", "batch": "samples N", "dim": "embedding size D"}


MODELS = (  # work of every head: its name, the line, the form that does it, its share of that, what it grows with
    ("2 N C D operations", "--", "product", 1, ("batch", "classes", "dim")),
    ("8 C D bytes", ":", "update", 8 / 20, ("classes", "dim")),
)


def growth(records: Sequence[Record]) -> bytes:
    """SVG: milliseconds over each of C, N and D that varies, and memory over C. Other sizes are the first case's.

    The dashed line is 2 N C D operations at the rate of the first case's product. The dotted line, where the update was
    measured, is 8 C D bytes (class_weight read and its gradient written once) at the rate of the first case's update,
    which moves 20 C D bytes.
    """
    varied = [name for name in AXES if len({r[name] for r in records}) > 1] or ["classes"]
    with mpl.rc_context(STYLE):
        figure, axes = axes_grid(1, len(varied) + 1, 3.6)
        for axis, name in zip(axes, varied, strict=False):
            _times(axis, _line(records, name), name)
        memory = [r for r in _line(records, "classes") if r["memory"]]
        for form in COLOURS:
            # a logarithmic axis has no 0
            points = [(r["classes"], max(1.0, extra_mib(r, form))) for r in memory if form in r["memory"]]
            if points:
                axes[-1].loglog(*zip(*points, strict=True), "o-", color=COLOURS[form], label=form, markersize=4)
        axes[-1].set(xlabel=AXES["classes"], title="MiB beyond inputs and gradients")
        axes[0].legend()
        return svg(figure)


def extra_mib(record: Record, form: str) -> float:
    """Memory that a form took beyond its inputs and gradients, MiB."""
    memory = record["memory"][form]
    return max(0.0, (memory["bytes"] - memory["gradients"]) / 2**20)


def _line(records: Sequence[Record], name: str) -> list[Record]:
    first = records[0]
    fixed = [key for key in (*AXES, "inputs") if key != name]
    return sorted((r for r in records if all(r[key] == first[key] for key in fixed)), key=lambda r: r[name])


def _times(axis: Any, records: Sequence[Record], name: str) -> None:
    for form, colour in COLOURS.items():
        points = [(r[name], results.figure(r["seconds"][form], 1000).median) for r in records if form in r["seconds"]]
        if points:
            axis.loglog(*zip(*points, strict=True), "o-", color=colour, label=form, markersize=4)
    for label, style, form, share, sizes in MODELS:
        if form in records[0]["seconds"]:
            first = share * results.figure(records[0]["seconds"][form], 1000).median
            points = [(r[name], first * math.prod(r[size] / records[0][size] for size in sizes)) for r in records]
            axis.loglog(*zip(*points, strict=True), style, color=INK, linewidth=1, label=label)
    axis.set(xlabel=AXES[name], title="milliseconds")
