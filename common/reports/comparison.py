"""Runs side by side: a page that compares any runs, and a table of finished runs of one recipe by backend and seed.

python -m common report RUN RUN [RUN ...]                                        the page
python -m common compare runs/*/lfw-small-seed* --figure comparison.png          the table alone, and a figure
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from common.evaluation.evaluate import RAW_PIXELS
from common.evaluation.verification import VerificationResult
from common.io.files import atomic_write
from common.io.text import NOTHING
from common.reports.page import Block, Heading, Panels, Paragraph, Table, markdown_table, write_page
from common.reports.plots import comparison_figure, runs_figures
from common.reports.rate_plots import Curve, det_figures, roc_figures
from common.reports.runs import (
    FinishedRun,
    Run,
    accuracy_series,
    finished,
    flat_settings,
    metric_series,
    read_finished,
    read_run,
    refuse_unlike,
)
from common.reports.verification_table import verification_table
from common.training.run_log import NEGATIVE_LOSS

SPEED = (
    "machine",
    *(f"backend.{name}" for name in ("device", "device_name", "threads", "cpus", "cpu_capability", "ranks")),
)
"""Facts of an environment that times depend on."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare finished runs of one recipe, grouped by backend: a Markdown table, and a figure if asked for."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, as runs/pytorch/lfw-small-seed0. Their settings must be the same, but for seed and device."""
    figure: Path | None = None
    """Also draw training loss and accuracy to this file, .png or .svg."""
    set: str | None = None
    """Name of the evaluation set; none: the only one that the runs have."""


class Compared(NamedTuple):
    """A run and its figures on one evaluation set."""

    run: FinishedRun
    result: VerificationResult  # after the last step
    raw_pixels: float | None  # accuracy of the baseline, a fraction; None: not measured


Groups = dict[str, dict[int, Compared]]
"""Runs by backend, in the order given, and by seed, increasing."""


def by_backend_and_seed(runs: Sequence[FinishedRun], name: str) -> Groups:
    """Runs of one recipe with their figures on the evaluation set `name`.

    Raises:
        ValueError: a run was not evaluated on the set at its end, or two runs cannot stand in one table; named.
    """
    refuse_unlike(runs)
    groups: Groups = {}
    for run in runs:
        if name not in run.own:
            raise ValueError(f"{run.path}: expected an evaluation on {name}; it has {', '.join(run.own) or 'none'}")
        saved = run.own[name]
        if saved.step != run.last_step:
            raise ValueError(
                f"{run.path}: training ended at step {run.last_step}, {name} was evaluated at step {saved.step}"
            )
        result = saved.evaluation.result
        if not np.array_equal(result.issame, runs[0].own[name].evaluation.result.issame):
            raise ValueError(f"{runs[0].path} and {run.path} differ in pairs of the set, by their kinds")
        baseline = (s.evaluation.result for s in run.saved if (s.evaluation.name, s.method) == (name, RAW_PIXELS))
        groups.setdefault(run.backend, {})[run.config.seed] = Compared(
            run, result, next((pixels.accuracy for pixels in baseline), None)
        )
    return {backend: dict(sorted(of_seed.items())) for backend, of_seed in groups.items()}


def seed_table(groups: Groups, name: str) -> tuple[Table, str]:
    """The accuracies on the set `name`, a row for each backend, and a line on the largest difference of means.

    The standard deviation is that of the population, over seeds. images/s is the median over all lines of the logs. A
    cell without a figure is empty.
    """
    seeds = sorted({seed for of_seed in groups.values() for seed in of_seed})
    head = ["backend", *(f"seed {seed}" for seed in seeds), "mean", "std, points", "raw pixels", "training, s"]
    rows, means = [], {}
    for backend, of_seed in groups.items():
        accuracies = [100 * one.result.accuracy for one in of_seed.values()]
        raw = [100 * one.raw_pixels for one in of_seed.values() if one.raw_pixels is not None]
        logs = [one.run.log for one in of_seed.values()]
        means[backend] = float(np.mean(accuracies))
        cells = [f"{100 * of_seed[seed].result.accuracy:.2f} %" if seed in of_seed else "" for seed in seeds]
        cells += [f"{means[backend]:.2f} %", f"{np.std(accuracies):.2f}" if len(accuracies) > 1 else ""]
        cells += [_range(raw, "{:.2f} %"), _range([log["seconds"][-1] for log in logs], "{:,.0f}")]
        rows.append([backend, *cells, f"{np.median(np.concatenate([log['images_per_second'] for log in logs])):,.0f}"])
    first = next(iter(next(iter(groups.values())).values()))
    line = f"{first.run.config.name}, {len(first.result.issame):,} pairs of {name}"
    if len(means) > 1:
        low, *_, high = sorted(means, key=lambda backend: means[backend])
        line += f"; largest difference between two means: {means[high] - means[low]:.2f} points ({high}, {low})"
    if any(list(one) != list(other) for one, other in itertools.pairwise(groups.values())):
        line += "; not over the same seeds"
    return Table([*head, "images/s"], rows), line


def main(arguments: Sequence[str]) -> None:
    """`compare`: print the table of the runs on the command line, and draw the figure.

    Raises:
        OSError, ValueError: something is wrong with the arguments or the runs; named.
    """
    options = tyro.cli(Options, prog="python -m common compare", args=arguments)
    form = options.figure.suffix[1:].lower() if options.figure else "none"
    if not options.runs or form not in ("none", "png", "svg"):
        raise ValueError("expected run folders, and with --figure a file .png or .svg")
    runs = [read_finished(folder) for folder in options.runs]
    names = {options.set} if options.set else {name for run in runs for name in run.own}
    if len(names) != 1:
        found = ", ".join(sorted(map(str, names))) or "none"
        raise ValueError(f"expected runs with one evaluation set, or its name with --set; they have {found}")
    groups = by_backend_and_seed(runs, name := str(names.pop()))
    table, line = seed_table(groups, name)
    print(markdown_table(table.head, table.rows), line, sep="\n\n")
    if options.figure is not None:
        drawn = {
            backend: [((run.log["step"], run.log["loss"]), result.accuracy) for run, result, _ in of_seed.values()]
            for backend, of_seed in groups.items()
        }
        raw = [one.raw_pixels for of_seed in groups.values() for one in of_seed.values() if one.raw_pixels is not None]
        with atomic_write(options.figure) as file:
            file.write(comparison_figure(drawn, float(np.mean(raw)) if raw else None, form))


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write out/comparison.html and comparison.md.

    Args:
        folders: two or more run folders; any run may be half-way. Each line of the first table is an evaluation.
        out: folder; made when missing.

    Returns:
        The path of the HTML file.

    Raises:
        FileNotFoundError, ValueError: as `read_run`; a folder given twice; `out` inside a run, which must not change.
    """
    for folder in folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out}: expected a folder outside the runs that are compared, got one in {folder}")
    runs = dict(zip(_labels([folder.resolve() for folder in folders]), map(read_run, folders), strict=True))
    sets = sorted({name for run in runs.values() for name in run.own})
    panels = {
        name: [
            Curve(label, run.own[name].evaluation.result, place)
            for place, (label, run) in enumerate(runs.items())
            if name in run.own
        ]
        for name in sets
    }
    losses = {label: series["loss"] for label, run in runs.items() if "loss" in (series := metric_series(run.train))}
    accuracies = {label: series for label, run in runs.items() if (series := accuracy_series(run.records))}
    problems = [f"{label}: {problem}" for label, run in runs.items() for problem in run.problems]
    blocks: list[Block] = [
        Heading(1, f"Comparison of {len(runs)} runs"),
        Heading(2, "Verification"),
        *(Paragraph(problem, "warning") for problem in problems),
        *_verification(runs, sets),
        Heading(2, "By backend and seed"),
        *_by_seed(list(runs.values())),
        *_unlike_machines(runs),
    ]
    pairs = zip(roc_figures(panels), det_figures(panels), strict=True)
    for heading, figures in (
        ("ROC and DET", list(itertools.chain.from_iterable(pairs))),
        ("Training", runs_figures(losses, accuracies)),
    ):
        blocks += [Heading(2, heading), Panels(figures) if figures else Paragraph("Nothing to draw.")]
    blocks += [Paragraph(NEGATIVE_LOSS)] if any(run.is_sface for run in runs.values()) else []
    blocks += [Heading(2, "Settings that differ"), _differences({label: run.settings for label, run in runs.items()})]
    blocks += [Heading(2, "Environments that differ"), _differences(_environments(runs))]
    return write_page(out / "comparison.html", "comparison of runs", blocks)


def _labels(paths: Sequence[Path]) -> list[str]:
    """Paths below the folder that all of them are in."""
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]}: expected each run once, got it {paths.count(twice[0])} times")
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]


def _verification(runs: dict[str, Run], sets: Sequence[str]) -> list[Block]:
    if not sets:
        return [Paragraph("No run has an evaluation yet.")]
    blocks = verification_table(
        ["run", "set"], [((label, name), run.own.get(name)) for name in sets for label, run in runs.items()]
    )
    for name in sets:
        kinds = {run.own[name].evaluation.result.issame.tobytes() for run in runs.values() if name in run.own}
        if len(kinds) > 1:
            note = f"{name}: the runs were evaluated on different pairs under this name; do not compare them."
            blocks.append(Paragraph(note))
    return blocks


def _by_seed(runs: Sequence[Run]) -> list[Block]:
    """A table for each set that all runs were evaluated on, or why there is none."""
    try:
        ended = [finished(run) for run in runs]
        blocks: list[Block] = []
        for name in sorted(set.intersection(*(set(run.final) for run in ended))):
            table, line = seed_table(by_backend_and_seed(ended, name), name)
            blocks += [table, Paragraph(line)]
    except ValueError as error:
        return [Paragraph(f"No table: {error}.")]
    return blocks or [Paragraph("No table: no set was evaluated at the end of every run.")]


def _unlike_machines(runs: Mapping[str, Run]) -> list[Block]:
    """A warning where speeds are not comparable."""
    environments = [flat_settings(environment) for environment in _environments(runs).values()]
    differing = [name for name in SPEED if len({one.get(name) for one in environments}) > 1]
    if not differing:
        return []
    found = (f"{name.removeprefix('backend.')} ({', '.join(_values(name, environments))})" for name in differing)
    text = f"The runs differ in {'; '.join(found)}: their times and speeds are not comparable."
    return [Paragraph(text, "warning")]


def _environments(runs: Mapping[str, Run]) -> dict[str, dict[str, Any]]:
    """Without what differs between any two runs."""
    return {
        label: {name: value for name, value in run.environment.items() if name not in ("time", "command")}
        for label, run in runs.items()
    }


def _values(name: str, environments: Sequence[Mapping[str, str]]) -> list[str]:
    return list(dict.fromkeys(one.get(name, "not recorded") for one in environments))


def _differences(values: Mapping[str, Mapping[str, Any]]) -> Block:
    """Names whose values differ, with a column for each run."""
    flat = [flat_settings(one) for one in values.values()]
    names = dict.fromkeys(name for one in flat for name in one)
    rows = [[name, *(one.get(name, NOTHING) for one in flat)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return Table(["setting", *values], rows, kind="settings") if rows else Paragraph("None.")


def _range(values: Sequence[float], form: str) -> str:
    return " to ".join(dict.fromkeys(form.format(value) for value in (min(values), max(values)))) if values else ""
