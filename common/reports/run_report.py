"""The report of a run: one HTML file without scripts or links, and the same in Markdown, from its folder.

python -m common report RUN                       its report
python -m common report RUN RUN [RUN ...]         their reports, and a page that compares them
"""

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import from_json
from common.datasets.pair_sets import open_pair_set
from common.evaluation.evaluate import Evaluation
from common.evaluation.results import SavedEvaluation
from common.io.text import NOTHING, fixed, percent, text_table
from common.reports.angle_plot import angle_figure
from common.reports.comparison_page import write_comparison
from common.reports.hardest_pairs import hardest_pairs, pair_picture
from common.reports.page import Block, Cards, Figure, Gallery, Heading, Paragraph, Picture, Table, write_page
from common.reports.plots import histogram_figure, training_figure
from common.reports.rate_plots import Curve, det_figure, roc_figure
from common.reports.runs import RunFolder, accuracy_series, flat_settings, is_number, metric_series, read_run_folder

HARDEST = 6
"""Pairs of each kind that a report shows of a set."""


def write_report(run: Path) -> Path:
    """Write run/report.html and run/report.md from config.json, environment.json, log.jsonl and evaluation/.

    Args:
        run: the run folder. What it does not hold yet is said in the report; an evaluation that cannot be read is
            named in it with the reason. Pictures of the hardest pairs are taken from the evaluation sets, where these
            still are where config.json says.

    Returns:
        The path of the HTML file.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: config.json, environment.json or log.jsonl is damaged (a last line cut short by a kill is not).
    """
    folder = read_run_folder(run)
    blocks: list[Block] = [
        Heading(1, folder.name),
        Paragraph(folder.path.resolve().name),
        *_cards(folder),
        Heading(2, "Verification"),
        *(Paragraph(problem, "warning") for problem in folder.problems),
        *_headline(folder.saved),
        Heading(2, "Training"),
        _figure(
            "training",
            "Training curves over optimiser steps",
            training_figure(metric_series(folder.train), accuracy_series(folder.records)),
            "The log holds no training steps yet.",
        ),
    ]
    blocks += _angles(folder)
    if folder.saved:
        blocks += _curves(folder.saved)
    for saved in folder.saved:
        if saved.method is None:
            blocks += _hardest(folder, saved.evaluation)
    blocks += [Heading(2, "Configuration"), _settings(folder.config)]
    blocks += [Heading(2, "Environment"), _settings(folder.environment)]
    return write_page(folder.path / "report.html", f"{folder.name}: report", blocks)


def comparison_table(rows: Iterable[tuple[str, Evaluation]]) -> str:
    """Plain-text table of (method, evaluation) rows: accuracy ± std and EER in percent, AUC as a fraction."""
    table = []
    for method, evaluation in rows:
        result = evaluation.result
        accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.std:5.2f} %"
        table.append((method, accuracy, fixed(result.auc, 4), percent(result.eer)))
    return text_table(("method", "accuracy ± std", "AUC", "EER"), table)


def _cards(folder: RunFolder) -> list[Block]:
    last = max(folder.train, key=lambda record: record["step"], default={})
    figures = {"optimiser steps": f"{last['step']:,}"} if last else {}
    for key, name, form in (
        ("epoch", "epochs", "{:.2f}"),
        ("loss", "last loss", "{:.4g}"),
        ("accuracy", "training top-1", "{:.1%}"),
        ("images_per_second", "images per second", "{:,.0f}"),
    ):
        if is_number(last.get(key)):
            figures[name] = form.format(last[key])
    return [Cards(figures)] if figures else []


def _headline(saved: Sequence[SavedEvaluation]) -> list[Block]:
    if not saved:
        return [Paragraph("No evaluation yet.")]
    fars = sorted({far for s in saved for far in s.evaluation.result.tar}, reverse=True)
    head = ["set", "step", "pairs", "folds", "accuracy ± std", "AUC", "EER"]
    head += [*(f"TAR @ FAR\u00a0{far:g}" for far in fars), "xnorm"]
    rows, notes = [], []
    for s in saved:
        result = s.evaluation.result
        row = [
            _label(s),
            NOTHING if s.method else f"{s.step:,}",
            f"{len(result.issame):,}",
            f"{len(result.fold_accuracies)}",
            f"{100 * result.accuracy:.2f} ± {100 * result.std:.2f} %",
            fixed(result.auc, 4),
            percent(result.eer),
            *(percent(result.tar.get(far, float("nan"))) for far in fars),
            f"{s.evaluation.xnorm:.4g}",
        ]
        rows.append(row)
        fewest = int((~result.issame).sum())
        unsure = [far for far in result.tar if 0 < fewest * far < 1]
        if unsure and s.method is None:
            rates = ", ".join(f"{far:g}" for far in sorted(unsure))
            notes.append(f"{s.evaluation.name}: {fewest:,} different pairs are too few to measure a FAR of {rates}.")
        if result.zero_embeddings:
            notes.append(f"{_label(s)}: {result.zero_embeddings:,} embeddings are zero vectors.")
    baselines = frozenset(number for number, s in enumerate(saved) if s.method)
    about = (
        "Accuracy: mean and population standard deviation over contiguous folds; TAR: mean over the folds; AUC and "
        "EER: over all pairs. xnorm: mean L2 norm of the raw embeddings. A rate that no pair could measure is shown as "
        f"{NOTHING}."
    )
    return [Table(head, rows, baselines), *map(Paragraph, [about, *notes])]


def _angles(folder: RunFolder) -> list[Block]:
    try:
        head = from_json(folder.config).head
    except ValueError:  # no configuration yet, or one of another version: the rest of the report stands
        return []
    records = [record for record in folder.records if record["kind"] == "angles"]
    about = (
        "The gradient for a unit embedding is r times the tangent of the sphere, whose length is sin θ. Histograms: "
        "training images in evaluation mode, at the first and the last evaluation."
    )
    figure = _figure(
        "angles", "The two sigmoids of SFace, and angles of training samples", angle_figure(head, records), ""
    )
    return [Heading(2, "Angles"), figure, Paragraph(about)] if isinstance(figure, Figure) else []


def _curves(saved: Sequence[SavedEvaluation]) -> list[Block]:
    names = sorted({s.evaluation.name for s in saved})  # the order, and so the colours, of the training figure
    labels = [_label(s) for s in saved]
    panels = {
        "": [
            Curve(label, s.evaluation.result, names.index(s.evaluation.name), s.method is not None)
            for s, label in zip(saved, labels, strict=True)
        ]
    }
    missing = "No set has both kinds of pair."
    return [
        Heading(2, "ROC"),
        _figure("roc", "ROC of each set, FAR logarithmic", roc_figure(panels), missing),
        Paragraph("Over all pairs at once. Dashed: baselines. The axis ends at one false accept."),
        Heading(2, "DET"),
        _figure("det", "DET of each set, both rates on the scale of the normal deviate", det_figure(panels), missing),
        Paragraph("The same curves by their errors; the axes end at one error. Grey: equal rates."),
        Heading(2, "Distances"),
        _figure(
            "distances", "Histograms of distances of same and different pairs", histogram_figure(saved, labels), missing
        ),
        Paragraph(
            "Squared L2 between unit vectors, from 0 to 4. A pair left of the threshold is called the same person."
        ),
    ]


def _hardest(folder: RunFolder, evaluation: Evaluation) -> list[Block]:
    """Pictures of the hardest pairs of a set, or why there are none."""
    name, result = evaluation.name, evaluation.result
    heading = Heading(2, f"Hardest pairs of {name}")
    if folder.data_root is None:
        return [heading, Paragraph("Not shown: config.json does not say where the evaluation sets are.")]
    try:
        pair_set = open_pair_set(folder.data_root / f"{name}.bin")
        if pair_set.issame.tolist() != result.issame.tolist():
            raise ValueError(f"{folder.data_root / name}.bin is another set than the one that was evaluated")
        blocks: list[Block] = [heading]
        kinds = ("Most similar different people", "Least similar images of one person")
        for kind, what, pairs in zip(("different", "same"), kinds, hardest_pairs(result, HARDEST), strict=True):
            pictures = [
                Picture(
                    f"{name}-{kind}-{place}",
                    f"pair {pair:,}, distance {result.distances[pair]:.2f}, "
                    + ("wrong" if (result.distances[pair] < result.threshold) != result.issame[pair] else "right"),
                    pair_picture(pair_set, pair),
                )
                for place, pair in enumerate(pairs.tolist(), 1)
            ]
            if pictures:
                blocks += [Heading(3, what), Gallery(pictures)]
    except (OSError, ValueError) as error:
        return [heading, Paragraph(f"Not shown: {error}")]
    about = f"Pairs are counted from 0; right and wrong: by the mean threshold of the folds, {result.threshold:.2f}."
    return [*blocks, Paragraph(about)]


def _settings(settings: Mapping[str, Any]) -> Block:
    rows = list(flat_settings(settings))
    return Table((), rows, kind="settings") if rows else Paragraph("Not recorded.")


def _figure(name: str, description: str, svg: bytes | None, otherwise: str) -> Block:
    return Paragraph(otherwise) if svg is None else Figure(name, description, svg)


def _label(saved: SavedEvaluation) -> str:
    method = f" ({saved.method.replace('_', ' ')})" if saved.method else ""
    return saved.evaluation.name + method


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of each run folder named on the command line, and a comparison of several; print the paths."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        "python -m common report",
        description="Write RUN/report.html and .md from a run folder; of several runs also comparison.html and .md.",
    )
    parser.add_argument("runs", type=Path, metavar="RUN", nargs="+", help="run folders, as runs/pytorch/orl-seed0")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="of the comparison; none: the folder that all runs are in"
    )
    options = parser.parse_args(arguments)
    try:
        for run in options.runs:
            print(write_report(run))
        if len(options.runs) > 1:
            common = Path(os.path.commonpath([run.resolve().parent for run in options.runs]))
            print(write_comparison(options.runs, options.out or common))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
