"""What the benchmarks have in common: on what machine they ran, how figures of turns are summed up, and their files.

A benchmark's JSON file has `machine`, `method` (in words), `charts` (what a page draws) and its own details.
"""

import dataclasses
import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common.io import memory
from common.io.files import atomic_write, write_json
from common.training.run_log import git_revision


class Figure(NamedTuple):
    """Of several turns."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.lowest)}, {number(self.highest)})"


@dataclass(frozen=True)
class Bar:
    """A bar of a chart; `target` is None or what it should reach."""

    label: str
    figure: Figure
    target: float | None = None


@dataclass(frozen=True)
class Chart:
    """Bars of one unit. `more_is_better` says on which side of its target a bar should be."""

    title: str
    unit: str
    bars: Sequence[Bar]
    more_is_better: bool = True


def figure(values: Sequence[float]) -> Figure:
    return Figure(statistics.median(values), min(values), max(values))


def number(value: float) -> str:
    """Three digits that matter, without an exponent."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"


def machine() -> dict[str, Any]:
    """Processor, cores, memory, what else the machine does, and versions: JSON values."""
    available = memory.host_available()
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_before": os.getloadavg()[0],
        "available_memory_gib": None if available is None else round(available / 2**30, 1),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "git": git_revision(),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def write(
    out: Path, name: str, *, text: str, method: str, charts: Sequence[Chart], ran_on: dict[str, Any], details: Any
) -> None:
    """Write out/NAME.json and out/NAME.md.

    Args:
        out: folder; made when missing.
        name: of the benchmark.
        text: Markdown, as printed.
        method: how it was measured, in words.
        charts: what a page draws.
        ran_on: `machine()`, taken before the measurements.
        details: every turn; JSON values.
    """
    with atomic_write(out / f"{name}.md", "w") as file:
        file.write(text + "\n")
    drawn = [_chart_json(chart) for chart in charts]
    write_json(out / f"{name}.json", {"machine": ran_on, "method": method, "charts": drawn, "details": details})


def read_charts(value: Any) -> list[Chart]:
    """`charts` of a benchmark's file, which may be of another version.

    Raises:
        ValueError: it is something else.
    """
    try:
        return [
            Chart(
                str(chart["title"]),
                str(chart["unit"]),
                [
                    Bar(
                        str(bar["label"]),
                        Figure(*(float(bar[key]) for key in Figure._fields)),
                        None if bar["target"] is None else float(bar["target"]),
                    )
                    for bar in chart["bars"]
                ],
                bool(chart["more_is_better"]),
            )
            for chart in value
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"charts: expected those of a benchmark, got something else ({error!r})") from None


def _chart_json(chart: Chart) -> dict[str, Any]:
    bars = [{"label": bar.label, **bar.figure._asdict(), "target": bar.target} for bar in chart.bars]
    return {**dataclasses.asdict(chart), "bars": bars}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = [name for name in ("avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{name}\b", text)]
    return (found[1] if found else platform.machine()) + (f" ({', '.join(flags)})" if flags else "")
