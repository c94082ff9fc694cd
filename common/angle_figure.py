"""What SFace does, as a figure: its two weights over the angle, and where the training samples lie."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

from common.angles import BINS, inter_weight, intra_weight
from common.config import HeadConfig
from common.plots import BLUE, GREEN, INK, STYLE, VERMILION, axes, svg

GROUPS = (
    ("correct", "own", BLUE, "correct label: to its prototype"),
    ("wrong", "own", VERMILION, "wrong label: to its prototype"),
    ("wrong", "true", GREEN, "wrong label: to the true person's"),
)


def angle_figure(head: HeadConfig, records: Sequence[Mapping[str, Any]]) -> str | None:
    """r_intra and r_inter, the effective gradient, and the angles that were logged first and last.

    Args:
        head: the loss; the two weights are drawn for sface only.
        records: of kind "angles" in log.jsonl, oldest first.

    Returns:
        A data URI, or None when there is nothing to draw.

    The gradient for the unit embedding is r times the tangent of the sphere, whose length is sin theta.
    """
    is_sface = head.name == "sface"
    rows = is_sface + (2 if records else 0)
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        figure, panels = axes(rows, 2, 2.7)
        if is_sface:
            theta = np.linspace(0, np.pi, 721)
            for panel, factor, ylabel in (
                (panels[0], np.ones_like(theta), "re-scale r"),
                (panels[1], np.sin(theta), "length of the gradient, r sin θ"),
            ):
                panel.plot(np.degrees(theta), factor * intra_weight(theta, head), color=BLUE, label="pull (r intra)")
                panel.plot(
                    np.degrees(theta), factor * inter_weight(theta, head), color=VERMILION, label="push (r inter)"
                )
                panel.set_ylabel(ylabel)
                panel.set_xlabel("angle to the prototype, degrees")
                panel.legend()
            panels[0].set_title("The two sigmoids")
            panels[1].set_title("Effective gradient")
        edges = np.linspace(0, 180, BINS + 1)
        for record, pair in zip(
            (records[0], records[-1]) if records else (), _pairs(panels[2 * is_sface :]), strict=True
        ):
            for panel, drawn, title in (
                (pair[0], GROUPS, "Angle to the own prototype"),
                (
                    pair[1],
                    (("correct", "others", BLUE, "correct label"), ("wrong", "others", VERMILION, "wrong label")),
                    "Angles to the others",
                ),
            ):
                for group, name, colour, label in drawn:
                    counts = np.array(record[group][name], np.float64)
                    if counts.sum():
                        panel.stairs(counts / counts.sum(), edges, color=colour, label=label, linewidth=1.4)
                if is_sface:
                    for center in (head.intra_center, head.inter_center):
                        panel.axvline(np.degrees(center), color=INK, linestyle=(0, (4, 2)), linewidth=1)
                panel.set_title(f"{title}, step {record['step']:,}")
                panel.set_xlabel("angle, degrees" + ("; dashed: a and b" if is_sface else ""))
                panel.set_ylabel("share")
                panel.legend()
        return svg(figure)


def _pairs(panels: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(panels[::2], panels[1::2], strict=True))
