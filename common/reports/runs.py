"""Run folders, read for reports: as they stand (`read_run`), or as finished runs (`read_finished`)."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import config as configuration
from common.config import RunConfig
from common.evaluation.results import SavedEvaluation, load_evaluation
from common.io.files import read_json, require_file
from common.reports.plots import Series
from common.reports.published import pair_set_files
from common.training.run_log import LOG, read_log

CONFIG, ENVIRONMENT = "config.json", "environment.json"
METRICS = ("loss", "intra_loss", "inter_loss", "target_cosine", "other_cosine", "lr", "accuracy", "images_per_second")
COLUMNS = ("step", "epoch", "loss", "images_per_second", "seconds")
FREE = ("seed", "device")
"""Settings in which runs of one recipe may differ."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run as it stands; what is missing is empty."""

    path: Path  # the folder
    settings: Mapping[str, Any]  # config.json
    environment: Mapping[str, Any]  # environment.json
    records: Sequence[Mapping[str, Any]]  # of log.jsonl, all kinds
    saved: Sequence[SavedEvaluation]  # evaluations by set, the run's own before its baselines
    problems: Sequence[str]  # evaluations that cannot be read, each with the reason

    @property
    def name(self) -> str:
        return str(self.settings.get("name", self.path.resolve().name))

    @property
    def train(self) -> list[Mapping[str, Any]]:
        return [record for record in self.records if record["kind"] == "train"]

    @property
    def own(self) -> dict[str, SavedEvaluation]:
        """Evaluations of the run's own network, by set."""
        return {s.evaluation.name: s for s in self.saved if s.method is None}

    @property
    def is_sface(self) -> bool:
        head = self.settings.get("head")
        return isinstance(head, dict) and head.get("name") == "sface"

    @property
    def data_root(self) -> Path | None:
        """The folder of the evaluation sets, relative to where the run was started."""
        data = self.settings.get("data")
        root = data.get("root") if isinstance(data, dict) else None
        return Path(root) if isinstance(root, str) and "\0" not in root else None


@dataclass(frozen=True, eq=False)
class FinishedRun(Run):
    """A run that came to its end."""

    config: RunConfig  # the checked configuration
    backend: str  # name of the framework
    log: Mapping[str, np.ndarray]  # (lines,) float64 for each of COLUMNS, by step

    @property
    def last_step(self) -> int:
        return int(self.log["step"][-1])

    @property
    def final(self) -> dict[str, SavedEvaluation]:
        """Evaluations of the run's own network after its last step, by set."""
        return {name: s for name, s in self.own.items() if s.step == self.last_step}


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: config.json, environment.json or log.jsonl is damaged. A last line cut short by a kill is left out.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected a run folder, found none")
    settings = _read_if_there(path / CONFIG, "the settings of a run")
    environment = _read_if_there(path / ENVIRONMENT, "the environment of a run")
    records = read_log(require_file(path / LOG, "the log of a run")) if (path / LOG).exists() else []
    for step in (record["step"] for record in records):
        if not 0 <= step < 2**53:  # float64 holds these exactly
            raise ValueError(f"{path / LOG}: expected steps from 0 to 2^53, got {step}")
    saved, problems = [], []
    for file in pair_set_files(path / "evaluation"):
        try:
            saved.append(load_evaluation(file))
        except (OSError, ValueError) as error:
            problems.append(str(error))
    saved.sort(key=lambda s: (s.evaluation.name, s.method or ""))
    return Run(path, settings, environment, records, saved, problems)


def read_finished(path: Path) -> FinishedRun:
    """Read the folder of a finished run; raises as `read_run` and `finished`."""
    return finished(read_run(path))


def finished(run: Run) -> FinishedRun:
    """`run` as a finished run.

    Raises:
        ValueError: a file is missing, damaged or incomplete, or the run is not at its end.
    """
    for name in (CONFIG, ENVIRONMENT, LOG):
        if not (run.path / name).exists():
            raise ValueError(f"{run.path}: expected a run folder, found no {name} in it")
    if run.problems:
        raise ValueError(run.problems[0])
    try:
        config = configuration.from_json(run.settings)
    except ValueError as error:
        raise ValueError(f"{run.path / CONFIG}: expected the settings of a run ({error})") from None
    described = run.environment.get("backend")
    backend = described.get("name") if isinstance(described, dict) else None
    if not isinstance(backend, str) or not re.fullmatch(r"[a-zA-Z][\w.-]*", backend):  # it becomes a cell of a table
        raise ValueError(f"{run.path / ENVIRONMENT}: expected the name of a backend in backend.name, got {backend!r}")
    lines = {line["step"]: line for line in run.train}
    try:
        log = np.asarray_chkfinite([[float(line[name]) for name in COLUMNS] for _, line in sorted(lines.items())])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        names = ", ".join(COLUMNS)
        raise ValueError(f"{run.path / LOG}: expected numbers {names} in train lines ({error!r})") from None
    last, epoch = log[-1, :2] if log.size else (0, 0)
    epochs, most = config.optimiser.epochs, config.optimiser.max_steps
    if epoch < epochs and (most is None or last < most):
        raise ValueError(f"{run.path}: expected a finished run, its log ends at epoch {epoch:.2f} of {epochs}")
    return FinishedRun(**vars(run), config=config, backend=backend, log=dict(zip(COLUMNS, log.T, strict=True)))


def refuse_unlike(runs: Sequence[FinishedRun], free: Collection[str] = FREE) -> None:
    """Check that runs differ in nothing that a result depends on, but for the settings `free`.

    Raises:
        ValueError: two runs differ, or two have the same backend and seed; both are named.
    """
    first = runs[0]
    seen: dict[tuple[str, int], FinishedRun] = {}
    for run in runs:
        differences = changed_settings(first.config, run.config, free)
        if run.last_step != first.last_step:
            differences.append(f"size of the training set, by the last step: {first.last_step} -> {run.last_step}")
        if differences:
            raise ValueError(f"{first.path} and {run.path} differ in {'; '.join(differences)}")
        twin = seen.setdefault((run.backend, run.config.seed), run)
        if twin is not run:
            raise ValueError(f"{twin.path} and {run.path} are both {run.backend} with seed {run.config.seed}: give one")


def changed_settings(old: RunConfig, new: RunConfig, free: Collection[str] = FREE) -> list[str]:
    """Each setting that can change a result, as "field: old -> new"; without those in `free`."""
    changes = configuration.differences(configuration.to_json(old), configuration.to_json(new))
    return [change for change in changes if change.partition(":")[0] not in free]


def flat_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Values as text by dotted name, as on the command line."""
    flat = configuration.flat(settings)
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for name, value in flat}


def metric_series(train: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """(steps, values) of each metric of METRICS in the log; of a step that was logged twice, the later line counts."""
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


def is_number(value: Any) -> bool:
    """Whether a value of the log can be drawn: a number, not a truth value, and not too large for an axis."""
    return type(value) in (int, float) and abs(value) < 1e300


def _as_series(points: dict[int, float]) -> Series:
    steps = sorted(points)
    return np.array(steps, np.float64), np.array([points[step] for step in steps], np.float64)


def _read_if_there(path: Path, what: str) -> dict[str, Any]:
    return read_json(path, what) if path.exists() else {}
