"""The figure of SFace's two weights over the angle, and of the angles of training samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from common.config import HeadConfig
from common.reports.plots import BLUE, GREEN, INK, STYLE, VERMILION, axes_grid, svg
from common.training.angles import BINS, inter_weight, intra_weight

OWN = (
    ("correct", "own", BLUE, "correct label: to its prototype"),
    ("wrong", "own", VERMILION, "wrong label: to its prototype"),
    ("wrong", "true", GREEN, "wrong label: to the true person's"),
)
OTHERS = (("correct", "others", BLUE, "correct label"), ("wrong", "others", VERMILION, "wrong label"))


def angle_figure(head: HeadConfig, records: Sequence[Mapping[str, Any]]) -> bytes | None:
    """r_intra and r_inter, the effective gradient, and the angles that were logged first and last.

    Args:
        head: the loss; only sface has the two weights.
        records: of kind "angles" in log.jsonl, oldest first; damaged ones are skipped.

    Returns:
        An SVG, or None when there is nothing to draw.
    """
    is_sface = head.name == "sface"
    whole = [record for record in records if _is_whole(record)]
    shown = [whole[0], whole[-1]] if len(whole) > 1 else whole
    if not is_sface and not shown:
        return None
    with mpl.rc_context(STYLE):
        figure, panels = axes_grid(is_sface + len(shown), 2, 2.7)
        if is_sface:
            _draw_weights(panels[0], panels[1], head)
        for row, record in enumerate(shown, is_sface):
            for panel, histograms, title in (
                (panels[2 * row], OWN, "Angle to the own prototype"),
                (panels[2 * row + 1], OTHERS, "Angles to the others"),
            ):
                _draw_angles(panel, record, histograms, head if is_sface else None)
                panel.set_title(f"{title}, step {record['step']:,}")
        return svg(figure)


def _draw_weights(weights: Axes, gradients: Axes, head: HeadConfig) -> None:
    """r over theta, and r sin(theta), the length of the gradient for a unit embedding."""
    theta = np.linspace(0, np.pi, 721)
    for panel, factor in ((weights, np.ones_like(theta)), (gradients, np.sin(theta))):
        panel.plot(np.degrees(theta), factor * intra_weight(theta, head), color=BLUE, label="pull, r intra")
        panel.plot(np.degrees(theta), factor * inter_weight(theta, head), color=VERMILION, label="push, r inter")
        panel.set_xlabel("angle to the prototype, degrees")
        panel.legend()
    weights.set_title("The two sigmoids")
    weights.set_ylabel("re-scale r")
    gradients.set_title("Effective gradient")
    gradients.set_ylabel("r sin θ")


def _draw_angles(panel: Axes, record: Mapping[str, Any], histograms: Any, sface: HeadConfig | None) -> None:
    edges = np.linspace(0, 180, BINS + 1)
    for group, name, colour, label in histograms:
        counts = np.array(record[group][name], np.float64)
        if counts.sum():
            panel.stairs(counts / counts.sum(), edges, color=colour, label=f"{label} ({int(counts.sum()):,})")
    for center in (sface.intra_center, sface.inter_center) if sface else ():
        panel.axvline(np.degrees(center), color=INK, linestyle=(0, (4, 2)), linewidth=1)
    panel.set_xlabel("angle, degrees" + ("; dashed: a and b" if sface else ""))
    panel.set_ylabel("share of angles")
    panel.set_ylim(0, panel.get_ylim()[1] * 1.35)  # room for the legend
    panel.legend(loc="upper right")


def _is_whole(record: Mapping[str, Any]) -> bool:
    try:
        counts = [record[group][name] for group, name, _, _ in (*OWN, *OTHERS)]
        return all(len(c) == BINS and all(type(n) is int and 0 <= n < 2**53 for n in c) for c in counts)
    except (KeyError, TypeError):
        return False
