"""What a run folder holds, read for reports: settings, log and evaluations; a run may be half-way or just begun."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.evaluation.results import SavedEvaluation, load_evaluation
from common.io.files import read_json
from common.reports.plots import Series
from common.reports.published import pair_set_files
from common.training.run_log import LOG, read_log

METRICS = ("loss", "intra_loss", "inter_loss", "target_cosine", "other_cosine", "lr", "accuracy", "images_per_second")


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run as it stands; what is missing is empty.

    Attributes:
        path: the folder.
        config, environment: JSON objects.
        records: of log.jsonl, all kinds.
        saved: evaluations by set, the run's own before its baselines.
        problems: evaluations that cannot be read, each with the reason.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    saved: Sequence[SavedEvaluation]
    problems: Sequence[str]

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.path.resolve().name))

    @property
    def train(self) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record["kind"] == "train"]

    @property
    def data_root(self) -> Path | None:
        """Where the evaluation sets were, relative to where the run was started."""
        data = self.config.get("data")
        root = data.get("root") if isinstance(data, dict) else None
        return Path(root) if isinstance(root, str) and "\0" not in root else None


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: config.json, environment.json or log.jsonl is damaged (a last line cut short by a kill is not).
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected the folder of a run, found none")
    config = _read_if_there(path / "config.json", "the settings of a run")
    environment = _read_if_there(path / "environment.json", "the environment of a run")
    records = read_log(path / LOG) if (path / LOG).exists() else []
    saved, problems = [], []
    for file in pair_set_files(path / "evaluation"):
        try:
            saved.append(load_evaluation(file))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    saved.sort(key=lambda s: (s.evaluation.name, s.method or ""))
    return RunFolder(path, config, environment, records, saved, problems)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names, as on the command line, and values as text."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flat_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def metric_series(train: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """(steps, values) of each metric of METRICS that the log holds; of a step logged twice, the later line counts."""
    series = {}
    for metric in METRICS:
        points = {record["step"]: record[metric] for record in train if is_number(record.get(metric))}
        if points:
            series[metric] = _as_series(points)
    return series


def accuracy_series(records: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """(steps, accuracies) of each evaluation set in the log."""
    points: dict[str, dict[int, float]] = {}
    for record in records:
        if record["kind"] == "evaluation" and is_number(record.get("accuracy")):
            points.setdefault(str(record.get("set")), {})[record["step"]] = record["accuracy"]
    return {name: _as_series(steps) for name, steps in points.items()}


def _as_series(points: dict[int, float]) -> Series:
    steps = sorted(points)
    return np.array(steps, np.float64), np.array([points[step] for step in steps], np.float64)


def is_number(value: Any) -> bool:
    """Whether a value of the log can be drawn: neither text nor a truth value, nor beyond what an axis holds."""
    return type(value) in (int, float) and abs(value) < 1e300


def _read_if_there(path: Path, what: str) -> dict[str, Any]:
    return read_json(path, what) if path.exists() else {}
