"""How the cost of a head grows with classes, samples and dimensions, beside the work that one product is."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

from benchmarks import results
from common.plots import BLUE, GREEN, INK, STYLE, VERMILION, axes_grid, svg

COLOURS = {"product": INK, "softmax": VERMILION, "plain": GREEN, "streamed": BLUE}
AXES = {"classes": "identities C", "batch": "samples N", "dim": "embedding size D"}


def growth(records: Sequence[dict[str, Any]]) -> bytes:
    """SVG: milliseconds over each of C, N and D that varies, and memory over C; dashed: 2 N C D operations at the rate
    of the first case's product. Other dimensions are those of the first case."""
    varied = [name for name in AXES if len({r[name] for r in records}) > 1] or ["classes"]
    with mpl.rc_context(STYLE):
        figure, axes = axes_grid(1, len(varied) + 1, 3.6)
        for axis, name in zip(axes, varied, strict=False):
            _times(axis, _line(records, name), name)
        memory = [r for r in _line(records, "classes") if r["memory"]]
        for form in COLOURS:
            points = [(r["classes"], _extra(r, form)) for r in memory if form in r["memory"]]
            if points:
                axes[-1].loglog(*zip(*points, strict=True), "o-", color=COLOURS[form], label=form, markersize=4)
        axes[-1].set(xlabel=AXES["classes"], title="MiB beyond inputs and gradients")
        axes[0].legend()
        return svg(figure)


def _line(records: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    first = records[0]
    fixed = [key for key in (*AXES, "inputs") if key != name]
    return sorted((r for r in records if all(r[key] == first[key] for key in fixed)), key=lambda r: r[name])


def _times(axis: Any, records: Sequence[dict[str, Any]], name: str) -> None:
    for form, colour in COLOURS.items():
        points = [(r[name], results.figure(r["seconds"][form]).median) for r in records if form in r["seconds"]]
        if points:
            values = [1000 * seconds for _, seconds in points]
            axis.loglog([value for value, _ in points], values, "o-", color=colour, label=form, markersize=4)
    if "product" in records[0]["seconds"]:
        rate = _operations(records[0]) / results.figure(records[0]["seconds"]["product"]).median
        model = [1000 * _operations(r) / rate for r in records]
        axis.loglog([r[name] for r in records], model, "--", color=INK, linewidth=1, label="2 N C D")
    axis.set(xlabel=AXES[name], title="milliseconds")


def _operations(record: dict[str, Any]) -> float:
    return 2.0 * record["batch"] * record["classes"] * record["dim"]


def _extra(record: dict[str, Any], form: str) -> float:
    memory = record["memory"][form]
    return max(1.0, (memory["bytes"] - memory["gradients"]) / 2**20)
