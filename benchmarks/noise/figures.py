"""Tables and figures of the label noise study."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.results import table as markdown_table
from common.io.files import atomic_write
from common.reports.plots import BLUE, CYCLE, GREEN, INK, STYLE, VERMILION
from common.training.angles import BINS

Result = dict[str, Any]
"""A result file: see `benchmarks.noise.study.result`."""

TEST, VALIDATION = "lfw_view2_folds01", "lfw_validation"


def table(results: Sequence[Result]) -> str:
    """Markdown table: a row a backend and method, a column a share of wrong labels.

    A cell is the mean accuracy in percent, with (lowest, highest; number of runs).
    """
    tests = [r for r in results if r["tested_on"] == TEST]
    shares = sorted({r["share"] for r in tests})
    rows = []
    for backend, method in dict.fromkeys((r["backend"], r["method"]) for r in tests):
        rows.append([backend, method])
        for share in shares:
            found = [100 * r["accuracy"] for r in _chosen(tests, backend, method, share)]
            spread = f" ({min(found):.2f}, {max(found):.2f}; {len(found)})" if len(found) > 1 else ""
            rows[-1].append(f"{statistics.mean(found):.2f}{spread}" if found else "")
    return markdown_table(["backend", "head", *(f"{share} % wrong" for share in shares)], rows)


def scan_table(results: Sequence[Result]) -> str:
    """Markdown table of accuracies on the validation set: a row a setting, a column a share of wrong labels."""
    scan = [r for r in results if r["tested_on"] == VALIDATION]
    shares = sorted({r["share"] for r in scan})
    rows = []
    for method in dict.fromkeys(r["method"] for r in scan):
        accuracy = {r["share"]: f"{100 * r['accuracy']:.2f}" for r in scan if r["method"] == method}
        rows.append([method, *(accuracy.get(share, "") for share in shares)])
    return markdown_table(["setting", *(f"{share} % wrong" for share in shares)], rows)


def write_all(results: Sequence[Result], out: Path) -> list[Path]:
    """Write noise.json (a line a result; angles of seed 0 only), noise.md (the tables) and the figures."""
    written = [out / "noise.json", out / "noise.md"]
    with atomic_write(written[0], "w") as file:
        kept = [r if r["seed"] == 0 and r["tested_on"] == TEST else {**r, "angles": []} for r in results]
        file.write("[\n" + ",\n".join(json.dumps(r, allow_nan=False) for r in kept) + "\n]\n")
    with atomic_write(written[1], "w") as file:
        file.write(f"{table(results)}\n\n{scan_table(results)}\n")
    figures = {"noise_accuracy": accuracy_figure, "noise_settings": settings_figure, "noise_angles": angles_figure}
    for name, draw in figures.items():
        figure = draw(results)
        if figure is not None:
            written.append(out / f"{name}.png")
            with atomic_write(written[-1]) as file:
                figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return written


def accuracy_figure(results: Sequence[Result]) -> Figure | None:
    """Mean, lowest and highest accuracy over the share of wrong labels; a panel a backend."""
    tests = [r for r in results if r["tested_on"] == TEST]
    # PyTorch, which has all heads, comes first
    backends = sorted({r["backend"] for r in tests}, key=lambda name: (name != "pytorch", name))
    if not tests:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 4.2 * len(backends), 4.2), layout="constrained")
        panels = figure.subplots(1, len(backends), squeeze=False, sharex=True, sharey=True)[0]
        methods = list(dict.fromkeys(r["method"] for r in tests))
        for panel, backend in zip(panels, backends, strict=True):
            for place, method in enumerate(methods):
                by_share = {
                    share: [r["accuracy"] for r in _chosen(tests, backend, method, share)]
                    for share in sorted({r["share"] for r in tests})
                }
                points = [(share, min(a), statistics.mean(a), max(a)) for share, a in by_share.items() if a]
                if points:
                    share, low, mean, high = np.array(points).T
                    beside = 0.5 * (place - (len(methods) - 1) / 2)  # so that the bars of a share do not overlap
                    look = {"marker": "o", "markersize": 4, "capsize": 3, "color": CYCLE[place % len(CYCLE)]}
                    panel.errorbar(share + beside, mean, np.array([mean - low, high - mean]), label=method, **look)
            panel.set_title(backend)
            panel.set_xlabel("wrong labels, % of the training set")
            panel.yaxis.set_major_formatter(PercentFormatter(1))
        panels[0].set_ylabel("accuracy on 1,200 pairs of other people")
        shown = {
            label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=3)
    return figure


def settings_figure(results: Sequence[Result]) -> Figure | None:
    """Heat maps of the accuracy on the validation set over SFace's a and b, one for each share of wrong labels."""
    scan = [r for r in results if r["tested_on"] == VALIDATION and r["head"]["name"] == "sface"]
    centers = {(r["head"]["intra_center"], r["head"]["inter_center"]) for r in scan}
    shares = sorted({r["share"] for r in scan})
    rows, columns = sorted({a for a, _ in centers}), sorted({b for _, b in centers})
    if len(rows) < 2 or len(columns) < 2:
        return None
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(0.8 + 4.3 * len(shares), 3.6), layout="constrained")
        panels = figure.subplots(1, len(shares), squeeze=False)[0]
        for panel, share in zip(panels, shares, strict=True):
            grid = np.full((len(rows), len(columns)), np.nan)
            for r in scan:
                if r["share"] == share:
                    place = rows.index(r["head"]["intra_center"]), columns.index(r["head"]["inter_center"])
                    grid[place] = 100 * r["accuracy"]
            image = panel.imshow(grid, origin="lower", cmap="viridis", aspect="auto")
            middle = (np.nanmin(grid) + np.nanmax(grid)) / 2
            for (row, column), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    colour = "white" if value < middle else "black"
                    panel.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
            panel.set_title(f"{share} % wrong labels")
            panel.set_xticks(range(len(columns)), [f"{b:.2f}" for b in columns])
            panel.set_yticks(range(len(rows)), [f"{a:.2f}" for a in rows])
            panel.set_xlabel("inter_center b, radians")
            panel.set_ylabel("intra_center a, radians")
            figure.colorbar(image, ax=panel, label="accuracy, %")
    return figure


def angles_figure(results: Sequence[Result]) -> Figure | None:
    """Angles between training samples and the prototypes of their labels, at the largest share of wrong labels."""
    most = max((r["share"] for r in results), default=0)
    wanted = ("pytorch", TEST, most)
    chosen = [r for r in results if r["angles"] and (r["backend"], r["tested_on"], r["share"]) == wanted]
    methods = {r["method"]: r for r in reversed(chosen)}  # the first seed of each
    if not most or not methods:
        return None
    edges = np.linspace(0, 180, BINS + 1)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 2.5 * -(-len(methods) // 2)), layout="constrained")
        panels = figure.subplots(-(-len(methods) // 2), 2, squeeze=False, sharex=True).ravel()
        for panel, r in zip(panels, reversed(methods.values()), strict=False):
            last = r["angles"][-1]
            for group, name, colour, label in (
                ("correct", "own", BLUE, "correct label: to its prototype"),
                ("wrong", "own", VERMILION, "wrong label: to its prototype"),
                ("wrong", "true", GREEN, "wrong label: to the true person's"),
            ):
                counts = np.array(last[group][name], float)
                if counts.sum():
                    panel.stairs(counts / counts.sum(), edges, color=colour, label=label, linewidth=1.4)
            if r["head"]["name"] == "sface":
                for center, text in ((r["head"]["intra_center"], "a"), (r["head"]["inter_center"], "b")):
                    panel.axvline(np.degrees(center), color=INK, linestyle=(0, (4, 2)), linewidth=1)
                    panel.annotate(
                        text, (np.degrees(center), 1), xycoords=("data", "axes fraction"), xytext=(2, -9),
                        textcoords="offset points", fontsize=8,
                    )  # fmt: skip
            panel.set_title(r["method"])
            panel.set_xlim(20, 120)
            panel.set_ylabel("share of samples")
        for panel in panels[len(methods) :]:
            panel.set_axis_off()
        for panel in panels[max(0, len(methods) - 2) : len(methods)]:
            panel.set_xlabel(f"angle, degrees (after training with {most} % wrong labels)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _chosen(results: Sequence[Result], backend: str, method: str, share: int) -> list[Result]:
    return [r for r in results if (r["backend"], r["method"], r["share"]) == (backend, method, share)]
