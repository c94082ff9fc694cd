"""What benchmarks report: the machine, figures of repeated measurements, tables, charts and result files.

The JSON file of a benchmark has `machine`, `method` (in words), `charts` (what the page of `all` draws) and `details`.
"""

import dataclasses
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from common.io import memory
from common.io.files import atomic_write, write_json
from common.io.machine import git_revision, processor


class Figure(NamedTuple):
    """Median, lowest and highest of repeated measurements."""

    median: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.lowest)}, {number(self.highest)})"


@dataclass(frozen=True)
class Bar:
    """A bar of a chart. `target`: the value that it should reach, if there is one."""

    label: str
    figure: Figure
    target: float | None = None


@dataclass(frozen=True)
class Chart:
    """Bars of one unit. With `more_is_better`, a bar should be above its target, else below."""

    title: str
    unit: str
    bars: Sequence[Bar]
    more_is_better: bool = True


@dataclass(frozen=True)
class Report:
    """What a command measured."""

    text: str  # Markdown
    charts: Sequence[Chart]
    details: Any  # every measurement; JSON values
    files: Mapping[str, bytes] = field(default_factory=dict)  # further files by name


def figure(values: Sequence[float], factor: float = 1.0) -> Figure:
    """The figure of `values`, each times `factor` (1000 for milliseconds of seconds)."""
    values = [factor * value for value in values]
    return Figure(statistics.median(values), min(values), max(values))


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}"


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load and versions: JSON values."""
    available = memory.host_available()
    return {
        "processor": processor(),
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
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def write(out: Path, name: str, report: Report, method: str, ran_on: dict[str, Any]) -> None:
    """Write out/NAME.json, out/NAME.md and the report's further files.

    Args:
        out: folder; made when missing.
        name: of the benchmark.
        report: what was measured.
        method: how it was measured, in words.
        ran_on: `machine()`, taken before the measurements.
    """
    texts = {f"{name}.md": (report.text + "\n").encode(), **report.files}
    for file_name, content in texts.items():
        with atomic_write(out / file_name) as file:
            file.write(content)
    charts = [dataclasses.asdict(chart) | {"bars": [_bar_json(bar) for bar in chart.bars]} for chart in report.charts]
    record = {"machine": ran_on, "method": method, "charts": charts, "details": report.details}
    write_json(out / f"{name}.json", record)


def read_charts(value: Any) -> list[Chart]:
    """The charts of a benchmark's JSON file.

    Raises:
        ValueError: these are no charts, or those of another version.
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
        raise ValueError(f"charts: expected those of a benchmark, got {str(value)[:100]!r} ({error!r})") from None


def _bar_json(bar: Bar) -> dict[str, Any]:
    return {"label": bar.label, **bar.figure._asdict(), "target": bar.target}
