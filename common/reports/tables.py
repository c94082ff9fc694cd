"""The paper's tables from finished runs: a row a recipe and set, a column a backend, beside what is published.

python -m common tables runs/*/casia-r50-seed* --out tables.html
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro

from common import config as configuration
from common.backend import BACKENDS
from common.io.files import read_json
from common.recipes import RECIPES
from common.reports.comparison import FinishedRun, read_finished
from common.reports.page import Heading, Paragraph, Table, write_page
from common.reports.published import (
    ACCURACY,
    EVALUATION_SETS,
    MEGAFACE,
    PROTOCOLS,
    RESULTS,
    YTF,
    Result,
    protocol_of,
    published_result,
    tar_at,
)

LEGEND = (
    "All in percent. Several seeds: mean ± population standard deviation (how many). Differences in points, "
    "ours - published. An empty cell: not known. *: settings were changed, see below."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The paper's tables from run folders, with a column a backend, and what is published with its source."""

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
    """A row: percents of the seeds, by backend."""

    key: Key
    ours: dict[str, list[float]]
    published: Result | None
    is_changed: bool  # some run of it has other settings than the recipe


class Tables(NamedTuple):
    """All rows, the backends that have a column, and what is to be said below."""

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
        _check_alike(members)
        figures = [own_figures(run) for run in members]
        keys = _keys(recipe, members, figures)
        changes = [_changes(run) for run in members]
        for key in keys:
            ours: dict[str, list[float]] = {}
            for run, known in zip(members, figures, strict=True):
                if (key.set, key.figure) in known:
                    ours.setdefault(run.backend, []).append(known[key.set, key.figure])
            rows.append(Row(key, ours, published_result(*key), any(changes)))
        for run, known, changed in zip(members, figures, changes, strict=True):
            notes += _missing(run, [key for key in keys if (key.set, key.figure) not in known])
            notes += [f"{run.folder}: not the recipe as it is: {'; '.join(changed)}."] if changed else []
    extra = [run.backend for run in runs if run.backend not in BACKENDS]
    return Tables(rows, [*BACKENDS, *dict.fromkeys(extra)], notes)


def own_figures(run: FinishedRun) -> dict[tuple[str, str], float]:
    """Percents of a run by (set, figure): accuracies after its last step, and what other protocols left."""
    saved = {s.evaluation.name: s for s in run.saved if s.method is None and s.step == run.last_step}
    accuracies = {(name, ACCURACY): 100 * s.evaluation.result.accuracy for name, s in saved.items()}
    return accuracies | protocol_figures(run)


def protocol_figures(run: FinishedRun) -> dict[tuple[str, str], float]:
    """Percents by (set, figure) that the IJB (1:1) and MegaFace protocols left in a run's `evaluation` folder.

    A file that names a `step` other than the run's last is left out.

    Raises:
        ValueError: a file is damaged; named.
    """
    figures: dict[tuple[str, str], float] = {}
    for path in sorted((run.folder / "evaluation").glob("*.json")):
        name = protocol_of(path.stem)
        if name is None:
            continue
        record = read_json(path, "the figures of a protocol")
        try:
            found = record if path.stem.startswith(MEGAFACE) else record["one_to_one"]
            points = found["tar"] if found is not None else {}
            rates = {float(far): float(point["rate"]) for far, point in points.items() if point["rate"] is not None}
            is_last = record.get("step", run.last_step) == run.last_step
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{path}: expected true accept rates by false accept rate ({error!r})") from None
        if not all(0 < far < 1 and 0 <= rate <= 1 for far, rate in rates.items()):
            raise ValueError(f"{path}: expected rates from 0 to 1, got {rates}")
        figures |= {(name, tar_at(far)): 100 * rate for far, rate in rates.items() if is_last}
    return figures


def markdown(tables: Tables) -> str:
    """The tables and the notes below as Markdown."""
    head, body, notes = _cells(tables)
    lines = [head, ["---"] * len(head), *body]
    table = ["| " + " | ".join(map(_escape_markdown, line)) + " |" for line in lines]
    return "\n".join([*table, "", *(f"- {_escape_markdown(note)}" for note in notes)])


def main(arguments: Sequence[str]) -> int:
    """Print the tables of the runs on the command line, and write them if asked; 2 if something is wrong with them."""
    options = tyro.cli(Options, prog="python -m common tables", args=arguments)
    try:
        if not options.runs or (options.out and options.out.suffix != ".html"):
            raise ValueError("expected run folders, and with --out a file .html")
        tables = collect([read_finished(folder) for folder in options.runs])
        print(markdown(tables))
        if options.out:
            head, body, notes = _cells(tables)
            title = "SFace: the paper's tables"
            write_page(options.out, title, [Heading(1, title), Table(head, body), *map(Paragraph, notes)])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check_alike(runs: Sequence[FinishedRun]) -> None:
    """Whatever makes a result must be the same, but for seed, device and the number of parts of a batch."""
    first = runs[0]
    seen: dict[tuple[str, int], FinishedRun] = {}
    for run in runs:
        differences = configuration.differences(_comparable(first), _comparable(run))
        if run.last_step != first.last_step:
            differences.append(f"size of the training set, by the last step: {first.last_step} -> {run.last_step}")
        if differences:
            raise ValueError(f"{first.folder} and {run.folder} differ in {'; '.join(differences)}")
        twin = seen.setdefault((run.backend, run.config.seed), run)
        if twin is not run:
            raise ValueError(
                f"{twin.folder} and {run.folder} are both {run.backend} with seed {run.config.seed}: give one"
            )


def _comparable(run: FinishedRun) -> dict[str, object]:
    optimiser = dataclasses.replace(run.config.optimiser, accumulate=1)
    return configuration.to_json(dataclasses.replace(run.config, seed=0, device="", optimiser=optimiser))


def _keys(recipe: str, runs: Sequence[FinishedRun], figures: Sequence[Mapping[tuple[str, str], float]]) -> list[Key]:
    """The recipe's sets in their order, then others that were evaluated, then those with a published figure only."""
    wanted = [(name, ACCURACY) for run in runs for name in run.config.data.evaluate_on]
    evaluated = [pair for known in figures for pair in known]
    published = [(r.set, r.figure) for r in RESULTS if published_result(recipe, r.set, r.figure)]
    return [Key(recipe, *pair) for pair in dict.fromkeys([*wanted, *evaluated, *published])]


def _missing(run: FinishedRun, keys: Sequence[Key]) -> list[str]:
    """Sentences on the figures that a run lacks."""
    late = {s.evaluation.name: s.step for s in run.saved if s.method is None and s.step != run.last_step}
    never = dict.fromkeys(_title(key.set) for key in keys if key.set not in late)
    notes = [f"{run.folder}: not evaluated on {', '.join(never)}."] if never else []
    for name, step in late.items():
        notes.append(f"{run.folder}: {_title(name)} left out, evaluated at step {step} of {run.last_step}.")
    return notes


def _changes(run: FinishedRun) -> list[str]:
    """Settings of a run that are not those of the recipe whose name it has."""
    if run.config.name not in RECIPES:
        return []
    recipe = RECIPES[run.config.name]()
    alike = dataclasses.replace(run.config, seed=recipe.seed, device=recipe.device)
    return configuration.differences(configuration.to_json(recipe), configuration.to_json(alike))


def _cells(tables: Tables) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, body and notes as text; published figures carry the number of their source."""
    sources = list(dict.fromkeys(row.published.source for row in tables.rows if row.published))
    head = ["recipe", "set", "figure", *tables.backends, "published"]
    head += [f"{backend} - published" for backend in tables.backends]
    body = []
    for row in tables.rows:
        published = f"{row.published.percent:.2f} [{1 + sources.index(row.published.source)}]" if row.published else ""
        ours = [_mean_and_spread(row.ours.get(backend, [])) for backend in tables.backends]
        recipe = row.key.recipe + ("*" if row.is_changed else "")
        body.append([recipe, _title(row.key.set), row.key.figure, *ours, published])
        body[-1] += [_difference(row.ours.get(backend, []), row.published) for backend in tables.backends]
    notes = [LEGEND]
    if sources:
        notes.append("No source says which row a published figure is of; it stands beside every row that it can be of.")
    return head, body, [*notes, *(f"[{i}] {source}." for i, source in enumerate(sources, 1)), *tables.notes]


def _mean_and_spread(percents: Sequence[float]) -> str:
    if len(percents) < 2:
        return "".join(f"{percent:.2f}" for percent in percents)
    return f"{np.mean(percents):.2f} ± {np.std(percents):.2f} ({len(percents)})"


def _difference(percents: Sequence[float], published: Result | None) -> str:
    return f"{np.mean(percents) - published.percent:+.2f}" if percents and published else ""


def _title(name: str) -> str:
    titles = {YTF: "YTF", **PROTOCOLS, **{name: known.title for name, known in EVALUATION_SETS.items()}}
    return titles.get(name, name)


def _escape_markdown(text: str) -> str:
    """Names come from files: they must not end a cell, a line, or begin a tag."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")
