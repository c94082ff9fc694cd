"""Several runs on one page: their figures, curves over each other, and the settings in which they differ."""

import os
from collections.abc import Sequence
from pathlib import Path

from common.evaluation.results import SavedEvaluation
from common.io.text import NOTHING, fixed, percent
from common.reports.page import Block, Figure, Heading, Paragraph, Table, write_page
from common.reports.plots import runs_figure
from common.reports.rate_plots import Curve, Panels, det_figure, roc_figure
from common.reports.runs import RunFolder, accuracy_series, flat_settings, metric_series, read_run_folder


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write out/comparison.html and comparison.md.

    Args:
        runs: run folders, two or more, any of them half-way; each line of the table is one of their evaluations.
        out: folder; made when missing.

    Returns:
        The path of the HTML file.

    Raises:
        FileNotFoundError, ValueError: as `common.reports.runs.read_run_folder`; or a folder given twice.
    """
    folders = [read_run_folder(run) for run in runs]
    labels = _labels([folder.path.resolve() for folder in folders])
    named = list(zip(labels, folders, strict=True))
    problems = [f"{label}: {problem}" for label, folder in named for problem in folder.problems]
    panels = _panels(named)
    losses = {label: series["loss"] for label, f in named if "loss" in (series := metric_series(f.train))}
    accuracies = {label: series for label, f in named if (series := accuracy_series(f.records))}
    blocks: list[Block] = [
        Heading(1, f"Comparison of {len(runs)} runs"),
        Heading(2, "Verification"),
        *(Paragraph(problem, "warning") for problem in problems),
        *_table(named),
    ]
    for heading, name, description, svg in (
        ("ROC", "roc", "ROC of each run, a panel a set, FAR logarithmic", roc_figure(panels)),
        ("DET", "det", "DET of each run, a panel a set, on the scale of the normal deviate", det_figure(panels)),
        ("Training", "training", "Loss and accuracy of each run over optimiser steps", runs_figure(losses, accuracies)),
    ):
        blocks += [Heading(2, heading), Figure(name, description, svg) if svg else Paragraph("Nothing to draw.")]
    blocks += [Heading(2, "Settings that differ"), _differences(named)]
    return write_page(out / "comparison.html", "comparison of runs", blocks)


def _labels(paths: Sequence[Path]) -> list[str]:
    """Paths below the folder that all of them are in."""
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]}: expected each run once, got it {paths.count(twice[0])} times")
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(common).as_posix() for path in paths]


def _own(folder: RunFolder) -> dict[str, SavedEvaluation]:
    """Evaluations of the run's own network by set."""
    return {s.evaluation.name: s for s in folder.saved if s.method is None}


def _sets(named: Sequence[tuple[str, RunFolder]]) -> list[str]:
    return sorted({name for _, folder in named for name in _own(folder)})


def _table(named: Sequence[tuple[str, RunFolder]]) -> list[Block]:
    sets = _sets(named)
    if not sets:
        return [Paragraph("No run has an evaluation yet.")]
    found = [(name, label, _own(folder).get(name)) for name in sets for label, folder in named]
    fars = sorted({far for _, _, s in found if s for far in s.evaluation.result.tar}, reverse=True)
    head = ["run", "set", "step", "pairs", "folds", "accuracy ± std", "AUC", "EER"]
    head += [f"TAR @ FAR\u00a0{far:g}" for far in fars]
    rows = []
    for name, label, s in found:
        if s is None:
            rows.append([label, name, *[NOTHING] * (len(head) - 2)])
            continue
        result = s.evaluation.result
        rows.append(
            [
                label,
                name,
                f"{s.step:,}",
                f"{len(result.issame):,}",
                f"{len(result.fold_accuracies)}",
                f"{100 * result.accuracy:.2f} ± {100 * result.std:.2f} %",
                fixed(result.auc, 4),
                percent(result.eer),
                *(percent(result.tar.get(far, float("nan"))) for far in fars),
            ]
        )
    notes = [f"{NOTHING}: the run was not evaluated on this set, or no pair could measure the rate."]
    for name in sets:
        kinds = {tuple(s.evaluation.result.issame.tolist()) for set_name, _, s in found if s and set_name == name}
        if len(kinds) > 1:
            notes.append(f"{name}: the runs were evaluated on different pairs under this name; do not compare them.")
    return [Table(head, rows), *(Paragraph(note) for note in notes)]


def _panels(named: Sequence[tuple[str, RunFolder]]) -> Panels:
    return {
        name: [
            Curve(label, _own(folder)[name].evaluation.result, place)
            for place, (label, folder) in enumerate(named)
            if name in _own(folder)
        ]
        for name in _sets(named)
    }


def _differences(named: Sequence[tuple[str, RunFolder]]) -> Block:
    settings = [dict(flat_settings(folder.config)) for _, folder in named]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [[name, *(one.get(name, NOTHING) for one in settings)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if not rows:
        return Paragraph("None.")
    return Table(["setting", *(label for label, _ in named)], rows, kind="settings")
