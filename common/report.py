"""The report of a run: one HTML file without scripts or links, made from what the run folder holds.

python -m common.report runs/pytorch/orl-seed0
python -m common.report tables RUN [RUN ...]     # the paper's tables: common/tables.py
"""

import argparse
import html
import importlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.evaluation import Evaluation, SavedEvaluation, load_evaluation
from common.files import atomic_write
from common.plots import Series, histogram_figure, roc_figure, training_figure
from common.runlog import LOG, read_log

NOTHING = "–"
METRICS = ("loss", "intra_loss", "inter_loss", "target_cosine", "other_cosine", "lr", "accuracy", "images_per_second")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: #222;
  background: #fff; max-width: 980px; margin: 2.5rem auto; padding: 0 1.25rem; }}
h1 {{ font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid #0072B2; }}
p {{ margin: .4rem 0; }}
.note {{ color: #595959; font-size: .87rem; }}
.warning {{ background: #fff4e5; border-left: 4px solid #D55E00; padding: .5rem .8rem; overflow-wrap: anywhere; }}
.cards {{ display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; }}
.cards div {{ background: #f4f6f8; border-radius: 6px; padding: .5rem .9rem; }}
.cards dt {{ color: #595959; font-size: .8rem; }}
.cards dd {{ margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .5rem; border-bottom: 1px solid #e3e3e3; text-align: right; white-space: nowrap; }}
th {{ font-weight: 600; font-size: .82rem; line-height: 1.3; color: #444; white-space: normal;
  vertical-align: bottom; }}
th:first-child, td:first-child, .settings td, .settings th {{ text-align: left; }}
tr.baseline td {{ color: #666; }}
.settings td {{ white-space: normal; overflow-wrap: anywhere; font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: .83rem; vertical-align: top; }}
.settings td:first-child {{ width: 35%; color: #444; }}
figure {{ margin: 0; }}
figure img {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_report(run: Path) -> Path:
    """Write run/report.html from config.json, environment.json, log.jsonl and evaluation/.

    Args:
        run: the run folder. What it does not hold yet is said in the report; an evaluation that cannot be read is
            named in it with the reason.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: config.json, environment.json or log.jsonl is damaged (a last line cut short by a kill is not).
    """
    run = Path(run)
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: expected the folder of a run, found none")
    config, environment = _read_settings(run / "config.json"), _read_settings(run / "environment.json")
    records = read_log(run / LOG) if (run / LOG).exists() else []
    train = [record for record in records if record["kind"] == "train"]
    saved, problems = _read_evaluations(run / "evaluation")

    name = str(config.get("name", run.resolve().name))
    body = [
        f"<h1>{_escape(name)}</h1>",
        f'<p class="note">{_escape(run.resolve().name)}</p>',
        _cards(train),
        "<h2>Verification</h2>",
        *(f'<p class="warning">{_escape(problem)}</p>' for problem in problems),
        _headline(saved),
        "<h2>Training</h2>",
        _figure(
            training_figure(metric_series(train), accuracy_series(records)),
            "Training curves over optimiser steps",
            "The log holds no training steps yet.",
        ),
    ]
    if saved:
        labels = [_label(s) for s in saved]
        body += [
            "<h2>ROC</h2>",
            _figure(roc_figure(saved, labels), "ROC of each set, FAR logarithmic", "No set has both kinds of pair."),
            '<p class="note">Over all pairs at once. Dashed: baselines. The axis ends at one false accept.</p>',
            "<h2>Distances</h2>",
            _figure(histogram_figure(saved, labels), "Histograms of distances of same and different pairs", ""),
            '<p class="note">Squared L2 between unit vectors, from 0 to 4. A pair left of the threshold is called '
            "the same person.</p>",
        ]
    body += ["<h2>Configuration</h2>", _settings(config), "<h2>Environment</h2>", _settings(environment)]

    path = run / "report.html"
    with atomic_write(path) as file:
        # Names may hold lone surrogates, from JSON or from file names that are not UTF-8.
        file.write(PAGE.format(title=_escape(f"{name}: report"), body="\n".join(body)).encode("utf-8", "replace"))
    return path


def comparison_table(rows: Iterable[tuple[str, Evaluation]]) -> str:
    """Plain-text table of (method, evaluation) rows: accuracy ± std and EER in percent, AUC as a fraction."""
    table = [("method", "accuracy ± std", "AUC", "EER")]
    for method, evaluation in rows:
        result = evaluation.result
        accuracy = f"{100 * result.accuracy:.2f} ± {100 * result.std:5.2f} %"
        table.append((method, accuracy, _fixed(result.auc, 4), _percent(result.eer)))
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in range(1, 4))]).rstrip() for row in table
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def metric_series(train: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """(steps, values) of each metric of METRICS that the log holds; of a step logged twice, the later line counts."""
    series = {}
    for metric in METRICS:
        points = {record["step"]: record[metric] for record in train if _is_number(record.get(metric))}
        if points:
            series[metric] = _as_series(points)
    return series


def accuracy_series(records: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """(steps, accuracies) of each evaluation set in the log."""
    points: dict[str, dict[int, float]] = {}
    for record in records:
        if record["kind"] == "evaluation" and _is_number(record.get("accuracy")):
            points.setdefault(str(record.get("set")), {})[record["step"]] = record["accuracy"]
    return {name: _as_series(steps) for name, steps in points.items()}


def _as_series(points: dict[int, float]) -> Series:
    steps = sorted(points)
    return np.array(steps, np.float64), np.array([points[step] for step in steps], np.float64)


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON ({error})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: expected an object, got {type(settings).__name__}")
    return settings


def _read_evaluations(folder: Path) -> tuple[list[SavedEvaluation], list[str]]:
    """By set, the run's own before its baselines; and what could not be read, with the reason."""
    saved, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            saved.append(load_evaluation(path))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    return sorted(saved, key=lambda s: (s.evaluation.name, s.method or "")), problems


def _cards(train: Sequence[Mapping[str, Any]]) -> str:
    last = max(train, key=lambda record: record["step"], default={})
    cards = [("optimiser steps", f"{last['step']:,}")] if last else []
    for key, name, form in (
        ("epoch", "epochs", "{:.2f}"),
        ("loss", "last loss", "{:.4g}"),
        ("accuracy", "training top-1", "{:.1%}"),
        ("images_per_second", "images per second", "{:,.0f}"),
    ):
        if _is_number(last.get(key)):
            cards.append((name, form.format(last[key])))
    items = "".join(f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>" for name, value in cards)
    return f'<dl class="cards">{items}</dl>' if cards else ""


def _headline(saved: Sequence[SavedEvaluation]) -> str:
    if not saved:
        return '<p class="note">No evaluation yet.</p>'
    fars = sorted({far for s in saved for far in s.evaluation.result.tar}, reverse=True)
    head = [
        "set",
        "step",
        "pairs",
        "accuracy ± std",
        "AUC",
        "EER",
        *(f"TAR @ FAR\u00a0{far:g}" for far in fars),
        "xnorm",
    ]
    rows = []
    for s in saved:
        result = s.evaluation.result
        cells = [
            _label(s),
            NOTHING if s.method else f"{s.step:,}",
            f"{len(result.issame):,}",
            f"{100 * result.accuracy:.2f} ± {100 * result.std:.2f} %",
            _fixed(result.auc, 4),
            _percent(result.eer),
            *(_percent(result.tar.get(far, math.nan)) for far in fars),
            f"{s.evaluation.xnorm:.4g}",
        ]
        kind = ' class="baseline"' if s.method else ""
        rows.append(f"<tr{kind}>" + "".join(f"<td>{_escape(cell)}</td>" for cell in cells) + "</tr>")
    notes = [
        "Accuracy: mean and population standard deviation over contiguous folds. xnorm: mean L2 norm of the raw "
        "embeddings. A rate that no pair could measure is shown as " + NOTHING + "."
    ]
    for s in saved:
        result = s.evaluation.result
        fewest = int((~result.issame).sum())
        unsure = [far for far in result.tar if 0 < fewest * far < 1]
        if unsure and s.method is None:
            rates = ", ".join(f"{far:g}" for far in sorted(unsure))
            notes.append(f"{s.evaluation.name}: {fewest:,} different pairs are too few to measure a FAR of {rates}.")
        if result.zero_embeddings:
            notes.append(f"{_label(s)}: {result.zero_embeddings:,} embeddings are zero vectors.")
    return (
        '<div class="wide"><table><thead><tr>'
        + "".join(f"<th>{_escape(cell)}</th>" for cell in head)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + "".join(f'<p class="note">{_escape(note)}</p>' for note in notes)
    )


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return '<p class="note">Not recorded.</p>'
    rows = "".join(f"<tr><td>{_escape(name)}</td><td>{_escape(value)}</td></tr>" for name, value in _flat(settings, ""))
    return f'<table class="settings"><tbody>{rows}</tbody></table>'


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    """Dotted names, as on the command line."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _figure(uri: str | None, description: str, otherwise: str) -> str:
    if uri is None:
        return f'<p class="note">{_escape(otherwise)}</p>'
    return f'<figure><img src="{uri}" alt="{_escape(description)}"></figure>'


def _label(saved: SavedEvaluation) -> str:
    method = f" ({saved.method.replace('_', ' ')})" if saved.method else ""
    return saved.evaluation.name + method


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %" if math.isfinite(fraction) else NOTHING


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of the run folder named on the command line and print its path; `tables`: common/tables.py."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments[:1]) == ["tables"]:
        return importlib.import_module("common.tables").main(arguments[1:])
    parser = argparse.ArgumentParser("python -m common.report", description="Write RUN/report.html from a run folder.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder, for example runs/pytorch/orl-seed0")
    try:
        print(write_report(parser.parse_args(arguments).run))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
