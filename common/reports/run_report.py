"""The report of a run: one HTML file that stands alone, and the same in Markdown, from its folder.

python -m common report RUN                       its report
python -m common report RUN RUN [RUN ...]         a page that compares them; their folders stay as they are
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import from_json
from common.datasets.pair_sets import open_pair_set
from common.evaluation.evaluate import Evaluation
from common.evaluation.results import SavedEvaluation
from common.reports.angle_plot import angle_figures
from common.reports.comparison import write_comparison
from common.reports.hardest_pairs import hardest_pairs, pair_picture
from common.reports.page import Block, Cards, Figure, Gallery, Heading, Panels, Paragraph, Picture, Table, write_page
from common.reports.plots import histogram_figures, training_figures
from common.reports.rate_plots import Curve, det_figures, roc_figures
from common.reports.runs import Run, accuracy_series, flat_settings, is_number, metric_series, read_run
from common.reports.verification_table import verification_table
from common.training.run_log import NEGATIVE_LOSS

HARDEST = 6
"""Pairs of each kind that a report shows for each set."""


def write_report(folder: Path) -> Path:
    """Write report.html and report.md into a run folder, from config.json, environment.json, log.jsonl and evaluation/.

    Args:
        folder: the run folder. The report says what is missing, and names an evaluation that cannot be read with the
            reason. Pictures of the hardest pairs come from the evaluation sets, if these are where config.json says.

    Returns:
        The path of the HTML file.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: config.json, environment.json or log.jsonl is damaged. A last line cut short by a kill is left out.
    """
    run = read_run(folder)
    blocks: list[Block] = [
        Heading(1, run.name),
        Paragraph(run.path.resolve().name),
        *_cards(run),
        Heading(2, "Verification"),
        *(Paragraph(problem, "warning") for problem in run.problems),
        *_verification(run.saved),
        Heading(2, "Training"),
        _panels(
            training_figures(metric_series(run.train), accuracy_series(run.records)),
            "The log holds no training steps yet.",
        ),
        *([Paragraph(NEGATIVE_LOSS)] if run.is_sface and run.train else []),
        *_angles(run),
        *(_curves(run.saved) if run.saved else []),
    ]
    for saved in run.own.values():
        blocks += _hardest(run, saved.evaluation)
    blocks += [Heading(2, "Configuration"), _settings(run.settings)]
    blocks += [Heading(2, "Environment"), _settings(run.environment)]
    return write_page(run.path / "report.html", f"{run.name}: report", blocks)


def _cards(run: Run) -> list[Block]:
    """What was trained, and how far it came; what is not known is left out."""
    settings, environment = flat_settings(run.settings), flat_settings(run.environment)

    def known(values: Mapping[str, str], *forms: str) -> str:
        """Those of the forms, "head.scale: s {}", whose value is there."""
        named = [form.partition(": ") for form in forms]
        found = [text.format(values[name]) for name, _, text in named if values.get(name, "null") != "null"]
        return ", ".join(found)

    centers = ("head.intra_center: a {}", "head.inter_center: b {}") if run.is_sface else ("head.margin: m {}",)
    last = max(run.train, key=lambda record: record["step"], default={})
    figures = {
        "loss": known(settings, "head.name: {}", "head.scale: s {}", *centers),
        "backbone": known(settings, "model.backbone: {}", "model.embedding_size: {}-d"),
        "data": known(settings, "data.root: {}", "data.image_size: {0} x {0} pixels"),
        "device": known(
            environment,
            "backend.name: {}",
            "backend.device: {}",
            "backend.device_name: {}",
            "backend.threads: threads {}",
        ),
    }
    figures = {name: text for name, text in figures.items() if text}
    if last:
        figures["optimiser steps"] = f"{last['step']:,}"
    for key, name, form in (
        ("epoch", "epochs", "{:.2f}"),
        ("loss", "last loss", "{:.4g}"),
        ("accuracy", "training top-1", "{:.1%}"),
        ("images_per_second", "images per second", "{:,.0f}"),
    ):
        if is_number(last.get(key)):
            figures[name] = form.format(last[key])
    return [Cards(figures)] if figures else []


def _verification(saved: Sequence[SavedEvaluation]) -> list[Block]:
    if not saved:
        return [Paragraph("No evaluation yet.")]
    return verification_table(["set"], [((_label(s),), s) for s in saved])


def _angles(run: Run) -> list[Block]:
    try:
        head = from_json(run.settings).head
    except ValueError:  # no configuration yet, or one of another version
        return []
    records = [record for record in run.records if record["kind"] == "angles"]
    about = (
        "Effective gradient: r sin θ, the length of the gradient for a unit embedding. Histograms: training images in "
        "evaluation mode, at the first and the last evaluation."
    )
    figures = angle_figures(head, records)
    return [Heading(2, "Angles"), Panels(figures), Paragraph(about)] if figures else []


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
        Heading(2, "ROC and DET"),
        _panels([*roc_figures(panels), *det_figures(panels)], missing),
        Paragraph(
            "Over all pairs. Dashed: baselines. DET: the same curves as error rates; grey: equal rates. The axes end "
            "at one error."
        ),
        Heading(2, "Distances"),
        _panels(histogram_figures(saved, labels), missing),
        Paragraph(
            "Squared L2 between unit vectors, from 0 to 4. A pair left of the threshold is called the same person."
        ),
    ]


def _hardest(run: Run, evaluation: Evaluation) -> list[Block]:
    """Pictures of the hardest pairs of a set, or why there are none."""
    name, result = evaluation.name, evaluation.result
    heading = Heading(2, f"Hardest pairs of {name}")
    if run.data_root is None:
        return [heading, Paragraph("Not shown: config.json does not say where the evaluation sets are.")]
    try:
        pair_set = open_pair_set(run.data_root / f"{name}.bin")
        if pair_set.issame.tolist() != result.issame.tolist():
            raise ValueError(f"{run.data_root / name}.bin is another set than the one that was evaluated")
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
    about = f"Pairs are counted from 0. Right and wrong: by the mean threshold of the folds, {result.threshold:.2f}."
    return [*blocks, Paragraph(about)]


def _settings(settings: Mapping[str, Any]) -> Block:
    rows = list(flat_settings(settings).items())
    return Table((), rows, kind="settings") if rows else Paragraph("Not recorded.")


def _panels(figures: Sequence[Figure], otherwise: str) -> Block:
    return Panels(figures) if figures else Paragraph(otherwise)


def _label(saved: SavedEvaluation) -> str:
    method = f" ({saved.method.replace('_', ' ')})" if saved.method else ""
    return saved.evaluation.name + method


def main(arguments: Sequence[str]) -> None:
    """`report`: write the report of each run on the command line, and a comparison of several; print the paths.

    Raises:
        OSError, ValueError: as `write_report` and `write_comparison`.
    """
    parser = argparse.ArgumentParser(
        "python -m common report",
        description="Write RUN/report.html and .md from a run folder; of several runs comparison.html and .md alone.",
    )
    parser.add_argument("runs", type=Path, metavar="RUN", nargs="+", help="run folders, as runs/pytorch/orl-seed0")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for the comparison; none: the folder that all runs are in"
    )
    options = parser.parse_args(arguments)
    if len(options.runs) == 1:
        print(write_report(options.runs[0]))
    else:
        common = Path(os.path.commonpath([run.resolve().parent for run in options.runs]))
        print(write_comparison(options.runs, options.out or common))
