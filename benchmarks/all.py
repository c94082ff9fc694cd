"""python -m benchmarks all: every benchmark in turn, one JSON file and one page with bar charts."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import tyro
from matplotlib.figure import Figure as Drawing

from benchmarks import results
from benchmarks.results import Chart
from common.io.files import write_json
from common.reports.page import Block, Figure, Heading, Paragraph, Table, write_page
from common.reports.plots import BLUE, INK, STYLE, VERMILION, plain_text, svg


@dataclass(frozen=True)
class Command:
    """A benchmark: its name, what it shows, and its options when little time is to be spent."""

    name: str
    title: str
    quick: tuple[str, ...] = ()


COMMANDS = (
    Command("head", "The loss head", ("--turns", "3")),
    Command("step", "A training step", ("--turns", "3", "--starts", "1", "--cases", "lfw-small")),
    Command("loader", "The loader", ("--turns", "3", "--images", "2048", "--large", "50000")),
    Command("verify", "Verification", ("--turns", "3", "--pairs", "600")),
    Command("scale", "Several ranks", ("--turns", "2", "--classes", "20000")),
    Command("speed", "The backends side by side", ("--turns", "3", "--cases", "lfw-small")),
)


@dataclass(frozen=True)
class Options:
    """Run every benchmark, each in a process of its own, one after the other."""

    out: Path
    """Folder of all.json, all.html, and a JSON and a Markdown file of each."""
    quick: bool = False
    """Few turns of small cases: to see that all of it works, not to be quoted."""
    only: tuple[str, ...] = ()
    """Names of some; none: all."""


def run(command: Command, options: Options) -> dict[str, Any]:
    """What its JSON file says, or {"error": ...}: one that fails does not keep the others from running."""
    path = options.out / f"{command.name}.json"
    path.unlink(missing_ok=True)  # of an earlier run
    extra = command.quick if options.quick else ()
    arguments = [sys.executable, "-m", "benchmarks", command.name, "--out", str(options.out), *extra]
    print(f"{command.name}: {' '.join(arguments[1:])}", flush=True)
    status = subprocess.run(arguments, check=False).returncode
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        results.read_charts(found.get("charts", []))
    except (OSError, ValueError) as error:
        return {"error": f"ended with status {status} and left no figures ({error})"}
    return found if status == 0 else {**found, "error": f"ended with status {status}"}


def blocks(found: dict[str, dict[str, Any]], machine: dict[str, Any], quick: bool) -> list[Block]:
    """The page."""
    page: list[Block] = [Heading(1, "Benchmarks")]
    if quick:
        page.append(Paragraph("A quick run: few turns of small cases. Not figures to quote.", "warning"))
    page.append(Paragraph("Bars are medians of the turns, lines reach from the lowest to the highest turn."))
    page += [Heading(2, "Machine"), Table((), [[name, str(value)] for name, value in machine.items()], kind="settings")]
    for command in COMMANDS:
        if command.name not in found:
            continue
        result = found[command.name]
        page.append(Heading(2, command.title))
        if "error" in result:
            page.append(Paragraph(f"python -m benchmarks {command.name}: {result['error']}", "warning"))
        if "method" in result:
            page.append(Paragraph(str(result["method"])))
        for number, chart in enumerate(results.read_charts(result.get("charts", []))):
            page.append(Heading(3, chart.title))
            page.append(Figure(f"{command.name}-{number}", chart.title, draw(chart)))
            page.append(table(chart))
    return page


def table(chart: Chart) -> Table:
    rows = [
        [
            bar.label,
            results.number(bar.figure.median),
            results.number(bar.figure.lowest),
            results.number(bar.figure.highest),
            "" if bar.target is None else f"{'≥' if chart.more_is_better else '≤'} {results.number(bar.target)}",
        ]
        for bar in chart.bars
    ]
    return Table(("", chart.unit, "lowest", "highest", "target"), rows)


def draw(chart: Chart) -> bytes:
    """Horizontal bars, vermilion where a target is missed; the SVG."""
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


def chosen(only: Sequence[str]) -> list[Command]:
    """Commands by name, in their own order; a ValueError names one that there is not."""
    unknown = sorted(set(only) - {command.name for command in COMMANDS})
    if unknown:
        names = ", ".join(command.name for command in COMMANDS)
        raise ValueError(f"only: expected some of {names}, got {unknown[0]!r}")
    return [command for command in COMMANDS if not only or command.name in only]


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m benchmarks all", args=arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    commands = chosen(options.only)
    machine = results.machine()
    found = {command.name: run(command, options) for command in commands}
    write_json(options.out / "all.json", {"machine": machine, "quick": options.quick, "benchmarks": found})
    print(f"wrote {write_page(options.out / 'all.html', 'Benchmarks', blocks(found, machine, options.quick))}")
    failed = [name for name, result in found.items() if "error" in result]
    for name in failed:
        print(f"{name}: {found[name]['error']}", file=sys.stderr)
    return 1 if failed else 0


def _missed(chart: Chart, bar: results.Bar) -> bool:
    if bar.target is None:
        return False
    return bar.figure.median < bar.target if chart.more_is_better else bar.figure.median > bar.target
