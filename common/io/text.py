"""Figures and tables as text, for the terminal and for reports."""

import math
from collections.abc import Sequence

NOTHING = "–"
"""In place of a figure that nothing could measure."""


def percent(fraction: float) -> str:
    """0.9951 as "99.51 %"; NaN as NOTHING."""
    return f"{100 * fraction:.2f} %" if math.isfinite(fraction) else NOTHING


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals; NaN as NOTHING."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain-text table: the first column to the left, the others to the right, a rule under the head."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in range(1, len(head)))]).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
