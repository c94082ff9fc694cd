"""The figure of SFace's two weights over the angle, and of the angles of training samples."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from common.config import HeadConfig
from common.reports.page import Figure
from common.reports.plots import BLUE, GREEN, INK, VERMILION, draw_panels
from common.training.angles import BINS, inter_weight, intra_weight

OWN = (
    ("correct", "own", BLUE, "correct label: to its prototype"),
    ("wrong", "own", VERMILION, "wrong label: to its prototype"),
    ("wrong", "true", GREEN, "wrong label: to the true person's"),
)
OTHERS = (("correct", "others", BLUE, "correct label"), ("wrong", "others", VERMILION, "wrong label"))


def angle_figures(head: HeadConfig, records: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """r_intra and r_inter, the effective gradient, and the angles that were logged first and last.

    Args:
        head: the loss; only sface has the two weights.
        records: of kind "angles" in log.jsonl, oldest first; damaged ones are skipped.
    """
    sface = head if head.name == "sface" else None
    whole = [record for record in records if _is_whole(record)]
    panels: list[Callable[[Axes], None]] = []
    if sface:
        panels += [
            partial(_draw_weights, sface, "The two sigmoids", "re-scale r", np.ones_like),
            partial(_draw_weights, sface, "Effective gradient", "r sin θ", np.sin),
        ]
    for record in [whole[0], whole[-1]] if len(whole) > 1 else whole:
        panels += [
            partial(_draw_angles, sface, "Angle to the own prototype", record, OWN),
            partial(_draw_angles, sface, "Angles to the others", record, OTHERS),
        ]
    return draw_panels(
        "angles",
        "of SFace and its training samples" if sface else "of training samples",
        panels,
        2.5,
        lambda axis, draw: draw(axis),
    )


def _draw_weights(
    head: HeadConfig, title: str, ylabel: str, factor: Callable[[np.ndarray], np.ndarray], panel: Axes
) -> None:
    """r over theta; with the factor sin(theta), the length of the gradient for a unit embedding."""
    theta = np.linspace(0, np.pi, 721)
    for weight, colour, label in (
        (intra_weight, BLUE, "pull, r intra"),
        (inter_weight, VERMILION, "push, r inter"),
    ):
        panel.plot(np.degrees(theta), factor(theta) * weight(theta, head), color=colour, label=label)
    panel.set_title(title)
    panel.set_xlabel("angle to the prototype, degrees")
    panel.set_ylabel(ylabel)


def _draw_angles(sface: HeadConfig | None, title: str, record: Mapping[str, Any], histograms: Any, panel: Axes) -> None:
    edges = np.linspace(0, 180, BINS + 1)
    for group, name, colour, label in histograms:
        counts = np.array(record[group][name], np.float64)
        if counts.sum():
            panel.stairs(counts / counts.sum(), edges, color=colour, label=f"{label} ({int(counts.sum()):,})")
    for center in (sface.intra_center, sface.inter_center) if sface else ():
        panel.axvline(np.degrees(center), color=INK, linestyle=(0, (4, 2)), linewidth=1)
    panel.set_title(f"{title}, step {record['step']:,}")
    panel.set_xlabel("angle, degrees" + ("; dashed: a and b" if sface else ""))
    panel.set_ylabel("share of angles")


def _is_whole(record: Mapping[str, Any]) -> bool:
    try:
        counts = [record[group][name] for group, name, _, _ in (*OWN, *OTHERS)]
        return all(len(c) == BINS and all(type(n) is int and 0 <= n < 2**53 for n in c) for c in counts)
    except (KeyError, TypeError):
        return False
