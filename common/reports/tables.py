"""Finished runs beside published figures: a row for each recipe and set, a column for each backend.

python -m common tables runs/*/casia-r50-seed* --out tables.html
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from common.backend import BACKENDS
from common.io.files import read_json
from common.io.text import NOTHING
from common.recipes import RECIPES
from common.reports.page import Heading, Paragraph, Table, markdown_table, write_page
from common.reports.published import (
    ACCURACY,
    MEGAFACE,
    RESULTS,
    ROWS,
    WITHOUT_ROW,
    Result,
    protocol_of,
    published_result,
    tar_at,
    title,
)
from common.reports.runs import FREE, FinishedRun, changed_settings, read_finished, refuse_unlike

LEGEND = (
    "All in percent. Several seeds: mean ± population standard deviation (number of seeds). Differences in points, "
    f"ours - published. An empty cell: not known. {NOTHING}: the pairs are too few to measure the rate. *: settings "
    "were changed, see below."
)
PUBLISHED = (
    "No published figure here is taken from the paper itself, and the READMEs of the three published codes state no "
    "result. The following figures belong to no row, so no run is held against them:"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Print finished runs beside published figures, with a column for each backend and the sources below."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of finished runs, of any recipes, backends and seeds."""
    out: Path | None = None
    """Also write the tables to this file, .html, and the same as .md beside it."""


class Key(NamedTuple):
    """What a row is about."""

    recipe: str
    set: str
    figure: str  # ACCURACY, or a rate by its name


class Row(NamedTuple):
    """Percents of the seeds, by backend; NaN where the pairs are too few to measure a rate."""

    key: Key
    ours: dict[str, list[float]]
    published: Result | None
    is_changed: bool  # some run of it has other settings than the recipe


class Tables(NamedTuple):
    """All rows, the backends that have a column, and the notes below."""

    rows: list[Row]
    backends: list[str]
    notes: list[str]


def collect(runs: Sequence[FinishedRun]) -> Tables:
    """Rows of the runs, recipes in the order given.

    Raises:
        ValueError: two runs of a recipe that cannot be averaged, or that are the same; named.
    """
    by_recipe: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_recipe.setdefault(run.config.name, []).append(run)
    rows: list[Row] = []
    notes: list[str] = []
    for recipe, members in by_recipe.items():
        refuse_unlike(members, (*FREE, "optimiser.accumulate"))
        figures = [own_figures(run) for run in members]
        keys = _keys(recipe, members, figures)
        changes = [changed_settings(RECIPES[recipe](), r.config) if recipe in RECIPES else [] for r in members]
        for key in keys:
            ours: dict[str, list[float]] = {}
            for run, known in zip(members, figures, strict=True):
                if (key.set, key.figure) in known:
                    ours.setdefault(run.backend, []).append(known[key.set, key.figure])
            rows.append(Row(key, ours, published_result(*key), any(changes)))
        for run, known, changed in zip(members, figures, changes, strict=True):
            notes += _missing(run, [key for key in keys if (key.set, key.figure) not in known])
            notes += [f"{run.path}: not the recipe as it is: {'; '.join(changed)}."] if changed else []
    extra = [run.backend for run in runs if run.backend not in BACKENDS]
    return Tables(rows, [*BACKENDS, *dict.fromkeys(extra)], notes)


def own_figures(run: FinishedRun) -> dict[tuple[str, str], float]:
    """Percents by (set, figure): accuracies after the last step, and true accept rates of IJB (1:1) and MegaFace.

    A protocol's file that names another `step` is left out. A rate that was not measured is NaN.

    Raises:
        ValueError: a file is damaged; named.
    """
    figures = {(name, ACCURACY): 100 * s.evaluation.result.accuracy for name, s in run.final.items()}
    for path in sorted((run.path / "evaluation").glob("*.json")):
        name = protocol_of(path.stem)
        if name is None:
            continue
        record = read_json(path, "the figures of a protocol")
        try:
            found = record if path.stem.startswith(MEGAFACE) else record["one_to_one"]
            points = found["tar"] if found is not None else {}
            rates = {float(far): None if p["rate"] is None else float(p["rate"]) for far, p in points.items()}
            is_last = record.get("step", run.last_step) == run.last_step
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{path}: expected true accept rates by false accept rate ({error!r})") from None
        if not all(0 < far < 1 and (rate is None or 0 <= rate <= 1) for far, rate in rates.items()):
            raise ValueError(f"{path}: expected rates from 0 to 1, got {rates}")
        for far, rate in rates.items() if is_last else ():
            figures[name, tar_at(far)] = math.nan if rate is None else 100 * rate
    return figures


def markdown(tables: Tables) -> str:
    """The tables and the notes below as Markdown."""
    head, body, notes = _cells(tables)
    table = markdown_table(head, [list(map(_escape_markdown, line)) for line in body])
    return "\n".join([table, "", *(f"- {_escape_markdown(note)}" for note in notes)])


def main(arguments: Sequence[str]) -> None:
    """`tables`: print the tables of the runs on the command line, and write them if asked.

    Raises:
        OSError, ValueError: something is wrong with the arguments or the runs; named.
    """
    options = tyro.cli(Options, prog="python -m common tables", args=arguments)
    if not options.runs or (options.out and options.out.suffix != ".html"):
        raise ValueError("expected run folders, and with --out a file .html")
    tables = collect([read_finished(folder) for folder in options.runs])
    print(markdown(tables))
    if options.out:
        head, body, notes = _cells(tables)
        name = "SFace: runs and published figures"
        write_page(options.out, name, [Heading(1, name), Table(head, body), *map(Paragraph, notes)])


def _keys(recipe: str, runs: Sequence[FinishedRun], figures: Sequence[Mapping[tuple[str, str], float]]) -> list[Key]:
    """The recipe's sets in their order, then others that were evaluated, then those with a published figure only."""
    wanted = [(name, ACCURACY) for run in runs for name in run.config.data.evaluate_on]
    evaluated = [pair for known in figures for pair in known]
    published = [(r.set, r.figure) for r in RESULTS if r.row == recipe]
    return [Key(recipe, *pair) for pair in dict.fromkeys([*wanted, *evaluated, *published])]


def _missing(run: FinishedRun, keys: Sequence[Key]) -> list[str]:
    """Sentences on the figures that a run lacks."""
    late = {name: s.step for name, s in run.own.items() if name not in run.final}
    never = dict.fromkeys(title(key.set) for key in keys if key.set not in late)
    notes = [f"{run.path}: not evaluated on {', '.join(never)}."] if never else []
    for name, step in late.items():
        notes.append(f"{run.path}: {title(name)} left out, evaluated at step {step} of {run.last_step}.")
    return notes


def _cells(tables: Tables) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, body and notes as text. Without a published figure for any row, there are no columns for them."""
    sources = list(dict.fromkeys(row.published.source for row in tables.rows if row.published))
    head = ["recipe", "set", "figure", *tables.backends]
    head += ["published", *(f"{backend} - published" for backend in tables.backends)] if sources else []
    body = []
    for row in tables.rows:
        ours = [row.ours.get(backend, []) for backend in tables.backends]
        recipe = row.key.recipe + ("*" if row.is_changed else "")
        cells = [recipe, title(row.key.set), row.key.figure, *map(_mean_and_spread, ours)]
        if row.published:
            cells += [f"{row.published.percent:.2f} [{1 + sources.index(row.published.source)}]"]
            cells += [_difference(percents, row.published) for percents in ours]
        body.append(cells + [""] * (len(head) - len(cells)))
    numbered = [f"[{i}] {source}." for i, source in enumerate(sources, 1)]
    others = [PUBLISHED, *WITHOUT_ROW] if any(row.key.recipe in ROWS for row in tables.rows) else []
    return head, body, [LEGEND, *numbered, *tables.notes, *others]


def _mean_and_spread(percents: Sequence[float]) -> str:
    if any(map(math.isnan, percents)):
        return NOTHING
    if len(percents) < 2:
        return "".join(f"{percent:.2f}" for percent in percents)
    return f"{np.mean(percents):.2f} ± {np.std(percents):.2f} ({len(percents)})"


def _difference(percents: Sequence[float], published: Result) -> str:
    difference = np.mean(percents) - published.percent if percents else math.nan
    return f"{difference:+.2f}" if math.isfinite(difference) else ""


def _escape_markdown(text: str) -> str:
    """Text from files, which must not end a cell or a line, or begin a tag."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
