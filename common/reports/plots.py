"""Figures of a run, as SVG, and of runs side by side, in colours that the colour-blind tell apart."""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox

from common.evaluation.results import SavedEvaluation
from common.evaluation.verification import VerificationResult
from common.reports import page

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
INK, FAINT = "#333333", "#DDDDDD"
WIDTH = 4.2
"""Inches of a panel: two stand side by side on a wide page, and one is still readable on a telephone."""
LINE = 45
"""Characters of a line of a title or a legend, as wide as a panel."""
MOST_POINTS = 800
"""Points of a curve. A longer log is averaged: the figure looks the same, and the page stays small."""

STYLE: Any = {  # matplotlib types its several hundred names one by one
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "sface",  # the same run gives the same bytes
}

RATE, VERIFICATION, ACCURACY = "Learning rate", "Verification accuracy", "accuracy (10-fold mean)"

Series = tuple[np.ndarray, np.ndarray]


class _Curves(NamedTuple):
    """A panel of lines over optimiser steps: (series, label, colour) each."""

    title: str
    ylabel: str
    curves: Sequence[tuple[Series, str, str]]


def draw_panels(
    name: str, description: str, panels: Sequence[Any], height: float, draw: Callable[[Axes, Any], None]
) -> list[page.Figure]:
    """A figure for each panel: axes of `height` inches with what `draw` draws, and the legend below them.

    Args:
        name: of the files beside the Markdown; they are numbered.
        description: of all panels, for those who cannot see them; it follows the title of each.
    """
    drawings = []
    with mpl.rc_context(STYLE):
        for number, panel in enumerate(panels, 1):
            figure = Figure(figsize=(WIDTH, height))
            draw(axis := figure.subplots(), panel)
            _fit(figure, axis)
            title = " ".join(axis.get_title("left").replace(r"\$", "$").split())
            drawings.append(page.Figure(f"{name}-{number}", f"{title}, {description}", svg(figure)))
    return drawings


def training_figures(train: Mapping[str, Series], accuracy: Mapping[str, Series]) -> list[page.Figure]:
    """Loss, cosines, learning rate and verification accuracy over optimiser steps; what was not logged is left out.

    Args:
        train: (steps, values) by the name of the metric in log.jsonl.
        accuracy: (steps, fractions) by the name of the set.
    """
    losses = (("loss", "total", INK), ("intra_loss", "intra-class", BLUE), ("inter_loss", "inter-class", VERMILION))
    cosines = (("target_cosine", "to the own class", BLUE), ("other_cosine", "to the others", VERMILION))
    panels = [
        _Curves(title, ylabel, [(train[key], label, colour) for key, label, colour in curves if key in train])
        for title, ylabel, curves in (
            ("Loss", "loss", losses),
            ("Cosine to prototypes", "mean cosine", cosines),
            (RATE, "learning rate", (("lr", "", INK),)),
        )
    ]
    sets = [(series, name, CYCLE[i % len(CYCLE)]) for i, (name, series) in enumerate(sorted(accuracy.items()))]
    panels = [panel for panel in (*panels, _Curves(VERIFICATION, ACCURACY, sets)) if panel.curves]
    return draw_panels("training", "over optimiser steps", panels, 2.5, _draw_curves)


def runs_figures(losses: Mapping[str, Series], accuracies: Mapping[str, Mapping[str, Series]]) -> list[page.Figure]:
    """Loss, and verification accuracy in a panel for each set, over optimiser steps; a line is a run.

    Args:
        losses: (steps, values) by run.
        accuracies: (steps, fractions) by run and set.
    """
    order = list(dict.fromkeys([*losses, *accuracies]))  # a run has one colour in all panels
    colours = {run: CYCLE[place % len(CYCLE)] for place, run in enumerate(order)}
    smooth = [((steps, _running_mean(values)), run, colours[run]) for run, (steps, values) in losses.items()]
    panels = [_Curves("Loss", "loss (running mean)", smooth)] if losses else []
    for name in sorted({name for sets in accuracies.values() for name in sets}):
        curves = [(sets[name], run, colours[run]) for run, sets in accuracies.items() if name in sets]
        panels.append(_Curves(f"Accuracy on {name}", ACCURACY, curves))
    return draw_panels("training", "of each run over optimiser steps", panels, 2.7, _draw_curves)


def histogram_figures(saved: Sequence[SavedEvaluation], labels: Sequence[str]) -> list[page.Figure]:
    """Distances of same and of different pairs of each evaluation, with the mean threshold."""
    panels = [(label, s.evaluation.result) for label, s in zip(labels, saved, strict=True)]
    return draw_panels("distances", "distances of same and different pairs", panels, 2.5, _draw_distances)


def comparison_figure(backends: Mapping[str, Sequence[tuple[Series, float]]], raw: float | None, form: str) -> bytes:
    """Backends side by side: training loss over optimiser steps, and the final accuracy of each run.

    Args:
        backends: (steps, losses) and accuracy, a fraction, of each seed. A thin line is a seed, a thick one their mean.
        raw: accuracy of raw pixels, a fraction; None: not measured.
        form: "png" or "svg".
    """
    with mpl.rc_context(STYLE):
        figure, (left, right) = axes_grid(1, 2, 3.4)
        for place, (backend, runs) in enumerate(backends.items()):
            colour, label = CYCLE[place % len(CYCLE)], plain_text(backend)
            smooth = [(steps, _running_mean(values)) for (steps, values), _ in runs]
            for series in smooth:
                left.plot(*thinned(series), color=colour, linewidth=0.6, alpha=0.6)
            steps = smooth[0][0]
            mean = np.mean([np.interp(steps, *series) for series in smooth], axis=0)  # log_every may differ
            left.plot(*thinned((steps, mean)), color=colour, linewidth=2, label=label, zorder=3)

            found = np.array([accuracy for _, accuracy in runs], np.float64)
            beside = 0.08 * (np.arange(len(found)) - (len(found) - 1) / 2)  # equal accuracies stay apart
            right.plot(place + beside, found, "o", color=colour, markersize=4, alpha=0.7, zorder=3)
            right.hlines(found.mean(), place - 0.25, place + 0.25, color=colour, linewidth=2)
            _annotate(right, f"{100 * found.mean():.2f} %", (place, found.max()), xytext=(0, 6), ha="center")
        left.set_title("Training loss")
        left.set_xlabel("optimiser step")
        left.set_ylabel("loss (running mean)")
        left.legend()
        right.set_title(VERIFICATION)
        right.set_xlabel("a dot: one seed; a line: their mean")
        right.set_ylabel(ACCURACY)
        right.set_xticks(range(len(backends)), [plain_text(backend) for backend in backends])
        right.set_xlim(-0.6, len(backends) - 0.4)
        right.grid(axis="x", visible=False)
        right.margins(y=0.12)  # room for the figures
        right.yaxis.set_major_formatter(PercentFormatter(1))
        if raw is not None:
            right.axhline(raw, color=INK, linestyle=(0, (3, 2)), linewidth=1.2)
            style = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 3), "ha": "right"}
            _annotate(right, f"raw pixels {100 * raw:.2f} %", (1, raw), **style)
        return _bytes(figure, form)


def _draw_curves(axis: Axes, panel: _Curves) -> None:
    axis.set_title(plain_text(panel.title))
    axis.set_xlabel("optimiser step")
    axis.set_ylabel(panel.ylabel)
    is_rate = panel.title == RATE
    for series, label, colour in panel.curves:
        steps, values = rate_steps(series) if is_rate else thinned(series)
        marker = "o" if len(steps) <= 30 and not is_rate else ""
        kind = "steps-post" if is_rate else "default"
        axis.plot(steps, values, color=colour, label=plain_text(label), marker=marker, markersize=3, drawstyle=kind)
    if is_rate and all(value > 0 for value in panel.curves[0][0][1]):
        axis.set_yscale("log")
    if panel.ylabel == ACCURACY:
        axis.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_distances(axis: Axes, panel: tuple[str, VerificationResult]) -> None:
    title, result = panel
    bins = np.linspace(0, max(0.1, float(result.distances.max())), 51).tolist()
    for kind, colour, name in ((True, BLUE, "same person"), (False, VERMILION, "different people")):
        chosen = result.distances[result.issame == kind]
        style: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.45, "color": colour}
        axis.hist(chosen, bins, label=f"{name} ({len(chosen):,})", **style)
        axis.hist(chosen, bins, histtype="step", color=colour, linewidth=1.2)
    axis.axvline(result.threshold, color=INK, linestyle=(0, (4, 2)), linewidth=1.2)
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
    place = {"xycoords": ("data", "axes fraction"), "xytext": (3, -2), "va": "top", "bbox": box}
    _annotate(axis, f"threshold {result.threshold:.2f}", (result.threshold, 1), **place)
    axis.set_title(plain_text(title))
    axis.set_xlabel("squared L2 distance")
    axis.set_ylabel("pairs")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.12)  # room for the threshold


def _fit(figure: Figure, axis: Axes) -> None:
    """Margins that hold all text, and a legend below, by which the figure grows: inside, curves may be anywhere.

    Text is measured once. Matplotlib's own layouts measure it two and three times, which takes most of a report's time.
    """
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=0.6 / width, bottom=0.5 / height, right=1 - 0.1 / width, top=1 - 0.3 / height)
    renderer, inch = FigureCanvasAgg(figure).get_renderer(), figure.dpi
    gap = 3 / 72
    plot, held = axis.bbox, axis.get_tightbbox(renderer, for_layout_only=True)
    assert held is not None  # that is for axes that are not visible
    left, right = (plot.x0 - held.x0) / inch + gap, (held.x1 - plot.x1) / inch + gap
    bottom, top = (plot.y0 - held.y0) / inch + gap, (held.y1 - plot.y1) / inch + gap
    texts = (child for child in axis.get_children() if isinstance(child, Text))  # of them the title may be too wide
    widest = left + max(text.get_window_extent(renderer).width for text in texts) / inch + gap
    if legend := _legend(figure, axis):
        size = legend.get_window_extent(renderer)
        widest = max(widest, size.width / inch + gap)
        bottom, height = bottom + size.height / inch + gap, height + size.height / inch + gap
    width = max(width, widest)
    figure.set_size_inches(width, height)
    figure.subplots_adjust(left=left / width, bottom=bottom / height, right=1 - right / width, top=1 - top / height)


def _legend(figure: Figure, axis: Axes) -> Legend | None:
    handles, labels = axis.get_legend_handles_labels()
    if not labels:
        return None
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = min(3, max(1, int(72 * WIDTH // (40 + 4.8 * longest))))  # points: line and gaps, a character
    return figure.legend(handles, labels, loc="lower left", ncols=columns, borderaxespad=0.2)


def _annotate(axis: Axes, text: str, place: tuple[float, float], **style: Any) -> None:
    axis.annotate(text, place, textcoords="offset points", fontsize=8, **style)


def rate_steps(series: Series) -> Series:
    """`series` where its value changes, and its last point: all that a piecewise constant rate needs."""
    steps, values = series
    kept = np.flatnonzero(np.r_[True, values[1:] != values[:-1]][: len(values)])
    kept = np.union1d(kept[:: 1 + len(kept) // MOST_POINTS], [len(steps) - 1])  # a warm-up changes at every step
    return steps[kept], values[kept]


def thinned(series: Series) -> Series:
    """`series`, averaged over groups of neighbours where it has more than MOST_POINTS points."""
    steps, values = series
    size = -(-len(steps) // MOST_POINTS)
    if size <= 1:
        return series
    starts = np.arange(0, len(steps), size)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a twentieth of the curve around each value; the window is narrower at both ends."""
    window = np.ones(len(values) // 20 | 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def axes_grid(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure made without pyplot, which would keep it in memory and may need a display."""
    figure = Figure(figsize=(4.75 * columns if columns > 1 else 6.4, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def svg(figure: Figure) -> bytes:
    """The figure as an SVG document; the same figure gives the same bytes."""
    for axis in figure.axes:
        if not axis.has_data():
            axis.set_axis_off()  # the empty place after an odd number of panels
    return _bytes(figure, "svg")


def _bytes(figure: Figure, form: str) -> bytes:
    file = io.BytesIO()
    changing = ("Date", "Creator") if form == "svg" else ("Software",)  # the same run gives the same bytes
    metadata = dict.fromkeys(changing)
    whole = figure.bbox_inches
    if layout := figure.get_layout_engine():
        layout.execute(figure)  # once; a drawing would do it again
        figure.set_layout_engine("none")
        whole = Bbox.union([whole, figure.get_tightbbox()])
    if not np.allclose(whole.size, figure.bbox_inches.size):  # no text that is too wide is cut
        figure.savefig(file, format=form, dpi=200, bbox_inches=whole, metadata=metadata)
    elif form == "svg":
        FigureCanvasSVG(figure).print_svg(file, metadata=metadata)  # savefig would draw all twice
    else:
        figure.set_dpi(200)
        FigureCanvasAgg(figure).print_png(file, metadata=metadata)
    return file.getvalue()


def plain_text(label: str) -> str:
    """A name from outside, for matplotlib: not read as a formula, not hidden for a leading underscore, not too wide."""
    printable = "".join(character if character.isprintable() else "?" for character in label)
    if len(printable) > 4 * LINE:
        printable = f"{printable[: 2 * LINE]} ... {printable[-LINE:]}"
    lines = textwrap.wrap(printable, LINE) or [""]
    return (" " if printable.startswith("_") else "") + "\n".join(lines).replace("$", r"\$")
