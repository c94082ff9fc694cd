"""ROC and DET curves, as SVG; a comparison of runs has a panel for each set."""

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, PercentFormatter

from common.evaluation.verification import VerificationResult
from common.reports.page import Figure
from common.reports.plots import CYCLE, FAINT, draw_panels, plain_text

DASHES = ("-", (0, (5, 1)), (0, (1, 1)))
BASELINE = (0, (3, 2))
MOST_EER = 0.45
"""Up to this equal error rate the axes of a DET curve end at 50 %, which leaves more room for good results."""
DET_TICKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)


class Curve(NamedTuple):
    """A line of a panel. Its place gives the colour; a baseline is dashed."""

    label: str
    result: VerificationResult
    place: int
    is_baseline: bool = False


Panels = Mapping[str, Sequence[Curve]]
"""Curves by the set that they are about; "": their labels say it."""


def roc_figures(panels: Panels) -> list[Figure]:
    """True accept rate over false accept rate, the latter logarithmic. Results with one kind of pair are left out."""
    return draw_panels("roc", "FAR logarithmic", _with_both_kinds("ROC", panels), 3.7, _draw_roc)


def det_figures(panels: Panels) -> list[Figure]:
    """False reject rate over false accept rate, both on the scale of the normal deviate; else as `roc_figures`.

    Martin, Doddington, Kamm, Ordowski, Przybocki, "The DET curve in assessment of detection task performance",
    Eurospeech 1997: where the distances of both kinds are normally distributed, the curve is a straight line.
    """
    about = "both rates on the scale of the normal deviate"
    return draw_panels("det", about, _with_both_kinds("DET", panels), 3.7, _draw_det)


class _Rates(NamedTuple):
    """A panel."""

    title: str
    curves: Sequence[Curve]


def _draw_roc(axis: Axes, panel: _Rates) -> None:
    # The rate of one false accept. Further left the axis would show only the left end of the steps.
    smallest = min(_smallest(curve.result, False) for curve in panel.curves)
    for curve in panel.curves:
        fpr, tpr = curve.result.roc
        first = int(np.searchsorted(fpr, smallest, side="right")) - 1  # what the left end shows
        _step(axis, np.maximum(fpr[first:], smallest), tpr[first:], curve, f"AUC {curve.result.auc:.4f}")
    axis.set_xscale("log")
    axis.set_xlim(smallest, 1)
    axis.set_ylim(0, 1.01)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    _label(axis, panel, "true accept rate (same pairs accepted)")


def _draw_det(axis: Axes, panel: _Rates) -> None:
    lowest = [min(_smallest(curve.result, kind) for curve in panel.curves) for kind in (False, True)]
    highest = 0.5 if max(*lowest, *(curve.result.eer for curve in panel.curves)) < MOST_EER else 0.99
    for curve in panel.curves:
        rates = (curve.result.roc.fpr, 1 - curve.result.roc.tpr)
        far, frr = (deviate(np.clip(r, low, 1 - low)) for r, low in zip(rates, lowest, strict=True))
        _step(axis, far, frr, curve, f"EER {100 * curve.result.eer:.2f} %")
    ends = deviate(np.array([min(lowest), highest]))
    axis.plot(ends, ends, color=FAINT, linewidth=1, zorder=0)  # where both rates are equal
    for axis_of, low in ((axis.xaxis, lowest[0]), (axis.yaxis, lowest[1])):
        ticks = [tick for tick in DET_TICKS if low <= tick <= highest]
        axis_of.set_ticks(deviate(np.array(ticks)).tolist(), [f"{100 * tick:g}%" for tick in ticks])
    axis.set_xlim(*deviate(np.array([lowest[0], highest])).tolist())
    axis.set_ylim(*deviate(np.array([lowest[1], highest])).tolist())
    _label(axis, panel, "false reject rate (same pairs rejected)")


def deviate(rates: np.ndarray) -> np.ndarray:
    """The normal deviate of each rate in (0, 1), in standard deviations above the mean."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(float(rate)) for rate in rates])


def _with_both_kinds(kind: str, panels: Panels) -> list[_Rates]:
    """A panel for each set that has a curve; a result with one kind of pair has none."""
    drawn = {name: [curve for curve in curves if curve.result.roc.fpr.size] for name, curves in panels.items()}
    return [_Rates(f"{kind} on {name}" if name else kind, curves) for name, curves in drawn.items() if curves]


def _smallest(result: VerificationResult, same: bool) -> float:
    """The rate of one error among the pairs of one kind."""
    return 1 / max(2, int((result.issame == same).sum()))


def _step(axis: Axes, x: np.ndarray, y: np.ndarray, curve: Curve, figure: str) -> None:
    dashes = BASELINE if curve.is_baseline else DASHES[curve.place // len(CYCLE) % len(DASHES)]
    label = plain_text(f"{curve.label}: {figure}")
    axis.step(x, y, where="post", color=CYCLE[curve.place % len(CYCLE)], linestyle=dashes, label=label)


def _label(axis: Axes, rates: _Rates, ylabel: str) -> None:
    axis.set_title(plain_text(rates.title))
    axis.set_xlabel("false accept rate (different pairs accepted)")
    axis.set_ylabel(ylabel)
