"""python -m benchmarks all: every benchmark in turn, and one page of bar charts."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Drawing

from benchmarks import results
from benchmarks.commands import COMMANDS
from benchmarks.results import Chart
from common.io.files import write_json
from common.reports.page import Block, Figure, Heading, Paragraph, Table, write_page
from common.reports.plots import BLUE, INK, STYLE, VERMILION, plain_text, svg

TITLES = {name: command.title for name, command in COMMANDS.items() if command.title}


@dataclass(frozen=True)
class Options:
    """Run every benchmark, each in a process of its own, one after the other."""

    out: Path
    """Folder for all.html, all.json and the files of each benchmark."""
    quick: bool = False
    """Few turns of small cases: shows that everything works; the figures mean little."""
    only: tuple[str, ...] = ()
    """Run only these benchmarks; by default all."""


def measured(name: str, options: Options) -> dict[str, Any]:
    """Run a benchmark and read its JSON file; with a failed one, {"error": ...}, and the others still run."""
    path = options.out / f"{name}.json"
    path.unlink(missing_ok=True)  # of an earlier run
    extra = COMMANDS[name].quick if options.quick else ()
    arguments = [sys.executable, "-m", "benchmarks", name, "--out", str(options.out), *extra]
    print(f"{name}: {' '.join(arguments[1:])}", flush=True)
    status = subprocess.run(arguments, check=False).returncode
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        results.read_charts(found.get("charts", []))
    except (OSError, ValueError) as error:
        return {"error": f"ended with status {status} and wrote no figures ({error})"}
    return found if status == 0 else {**found, "error": f"ended with status {status}"}


def blocks(found: dict[str, dict[str, Any]], machine: dict[str, Any], quick: bool) -> list[Block]:
    """The page's content."""
    page: list[Block] = [Heading(1, "Benchmarks")]
    if quick:
        page.append(Paragraph("A quick run: few turns of small cases. Do not quote its figures.", "warning"))
    page.append(Paragraph("A bar is the median of the turns; its line reaches from the lowest to the highest turn."))
    page += [Heading(2, "Machine"), Table((), [[name, str(value)] for name, value in machine.items()], kind="settings")]
    for name, result in found.items():
        page.append(Heading(2, TITLES[name]))
        if "error" in result:
            page.append(Paragraph(f"python -m benchmarks {name}: {result['error']}", "warning"))
        if "method" in result:
            page.append(Paragraph(str(result["method"])))
        for number, chart in enumerate(results.read_charts(result.get("charts", []))):
            page.append(Heading(3, chart.title))
            page.append(Figure(f"{name}-{number}", chart.title, draw(chart)))
            page.append(table(chart))
    return page


def table(chart: Chart) -> Table:
    sign = "≥" if chart.more_is_better else "≤"
    targets = ["" if bar.target is None else f"{sign} {results.number(bar.target)}" for bar in chart.bars]
    figures = [map(results.number, bar.figure) for bar in chart.bars]
    rows = [[bar.label, *figure, target] for bar, figure, target in zip(chart.bars, figures, targets, strict=True)]
    return Table(("", chart.unit, "lowest", "highest", "target"), rows)


def draw(chart: Chart) -> bytes:
    """SVG of horizontal bars, vermilion where a target is missed."""
    with mpl.rc_context(STYLE):
        drawing = Drawing(figsize=(7.5, 0.7 + 0.3 * len(chart.bars)), layout="constrained")
        axis = drawing.subplots()
        for row, bar in enumerate(chart.bars):
            median, lowest, highest = bar.figure
            error = [[median - lowest], [highest - median]]
            axis.barh(row, median, color=VERMILION if _missed(chart, bar) else BLUE, height=0.6)
            axis.errorbar(median, row, xerr=error, color=INK, linewidth=1, capsize=2)
            if bar.target is not None:
                axis.plot([bar.target] * 2, [row - 0.4, row + 0.4], color=INK, linestyle=(0, (2, 1)), linewidth=1.2)
        axis.set_yticks(range(len(chart.bars)), [plain_text(bar.label) for bar in chart.bars])
        axis.set_ylim(len(chart.bars) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel(plain_text(chart.unit) + (" (dashes: target)" if any(b.target for b in chart.bars) else ""))
        return svg(drawing)


def chosen(only: Sequence[str]) -> list[str]:
    """The benchmarks in the order of the table, all of them or those in `only`.

    Raises:
        ValueError: there is no such benchmark.
    """
    unknown = sorted(set(only) - set(TITLES))
    if unknown:
        raise ValueError(f"only: expected some of {', '.join(TITLES)}, got {unknown[0]!r}")
    return [name for name in TITLES if not only or name in only]


def run(options: Options) -> int:
    """Run the benchmarks and write the page; the exit status is 1 if one failed."""
    names = chosen(options.only)
    options.out.mkdir(parents=True, exist_ok=True)
    machine = results.machine()
    found = {name: measured(name, options) for name in names}
    write_json(options.out / "all.json", {"machine": machine, "quick": options.quick, "benchmarks": found})
    print(f"wrote {write_page(options.out / 'all.html', 'Benchmarks', blocks(found, machine, options.quick))}")
    failed = {name: result["error"] for name, result in found.items() if "error" in result}
    for name, error in failed.items():
        print(f"{name}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _missed(chart: Chart, bar: results.Bar) -> bool:
    if bar.target is None:
        return False
    return bar.figure.median < bar.target if chart.more_is_better else bar.figure.median > bar.target
