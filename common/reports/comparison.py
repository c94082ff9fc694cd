"""Backends side by side: a table and a figure of finished runs of one recipe.

python -m common compare runs/*/lfw-small-seed* --figure comparison.png
"""

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from common import config as configuration
from common.config import RunConfig
from common.evaluation.evaluate import RAW_PIXELS
from common.evaluation.results import SavedEvaluation, load_evaluation
from common.io.files import atomic_write, read_json
from common.reports.plots import Series, comparison_figure
from common.reports.published import pair_set_files
from common.training.run_log import LOG, read_log

COLUMNS = ("step", "epoch", "loss", "images_per_second", "seconds")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare finished runs of one recipe, grouped by backend: a Markdown table, and a figure if asked for."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, as runs/pytorch/lfw-small-seed0. Whatever touches the result is the same but for seed and device."""
    figure: Path | None = None
    """Also draw training loss and accuracy to this file, .png or .svg."""
    set: str | None = None
    """Name of the evaluation set; none: the only one that the runs have."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What is compared of a run."""

    folder: Path
    config: RunConfig
    backend: str
    loss: Series  # over optimiser steps
    speeds: np.ndarray  # images/s, one a line of the log
    seconds: float  # of training
    set: str
    issame: np.ndarray  # the kind of each pair of the set
    accuracy: float  # a fraction, after the last step
    raw_pixels: list[float]  # the baseline's accuracy; empty: not measured


Groups = dict[str, dict[int, Run]]
"""Runs by backend, in the order given, and by seed, increasing."""


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a run folder says about a run that came to its end."""

    folder: Path
    config: RunConfig
    backend: str
    log: np.ndarray  # (lines, len(COLUMNS)) float64, by step
    saved: list[SavedEvaluation]  # by file name; those of baselines too

    @property
    def last_step(self) -> int:
        return int(self.log[-1, 0])


def read_finished(folder: Path) -> FinishedRun:
    """Read a run folder.

    Raises:
        OSError, ValueError: not a run folder, a damaged file, or a run that is not at its end.
    """
    config = _read(folder / "config.json", "the settings of a run", configuration.from_json)
    backend = _read(
        folder / "environment.json", "an environment with backend.name", lambda value: value["backend"]["name"]
    )
    if not isinstance(backend, str) or not re.fullmatch(
        r"[a-zA-Z][\w.-]*", backend
    ):  # it becomes a cell of a Markdown table
        raise ValueError(f"{folder / 'environment.json'}: expected the name of a backend, got {backend!r}")
    lines = {line["step"]: line for line in read_log(folder / LOG) if line["kind"] == "train"}
    try:
        log = np.asarray_chkfinite([[float(line[name]) for name in COLUMNS] for _, line in sorted(lines.items())])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / LOG}: expected numbers {', '.join(COLUMNS)} in train lines ({error!r})") from None
    last, epoch = log[-1, :2] if log.size else (0, 0)
    epochs, most = config.optimiser.epochs, config.optimiser.max_steps
    if epoch < epochs and (most is None or last < most):
        raise ValueError(f"{folder}: expected a finished run, its log ends at epoch {epoch:.2f} of {epochs}")
    saved = [load_evaluation(path) for path in pair_set_files(folder / "evaluation")]
    return FinishedRun(folder, config, backend, log, saved)


def read_run(folder: Path, set_name: str | None) -> Run:
    """Read a run folder; `set_name` as `Options.set`.

    Raises:
        OSError, ValueError: as `read_finished`, or the run was not evaluated on the set at its end.
    """
    run = read_finished(folder)
    own = {s.evaluation.name: s for s in run.saved if s.method is None}
    name = next(iter(own)) if set_name is None and len(own) == 1 else set_name
    if name not in own:
        wanted = name or ("one set, chosen by --set" if own else "a set")
        raise ValueError(f"{folder}: expected an evaluation on {wanted}; it has {', '.join(own) or 'none'}")
    if own[name].step != run.last_step:
        raise ValueError(
            f"{folder}: training ended at step {run.last_step}, {name} was evaluated at step {own[name].step}"
        )
    result = own[name].evaluation.result
    raw = [s.evaluation.result.accuracy for s in run.saved if (s.evaluation.name, s.method) == (name, RAW_PIXELS)]
    steps, _, loss, speeds, seconds = run.log.T
    return Run(
        folder, run.config, run.backend, (steps, loss), speeds, seconds[-1], name, result.issame, result.accuracy, raw
    )


def grouped(runs: Sequence[Run]) -> Groups:
    """Runs by backend and seed; a ValueError names two that cannot stand in one table, and what differs."""
    groups: Groups = {}
    for run in runs:
        first, seed = runs[0], run.config.seed
        old, new = (configuration.to_json(dataclasses.replace(r.config, seed=0, device="")) for r in (first, run))
        differences = configuration.differences(old, new)
        for name, one, other in (
            ("evaluation set (choose with --set)", first.set, run.set),
            ("pairs of the set, by their kinds", first.issame.tolist(), run.issame.tolist()),
            ("size of the training set, by the last step", first.loss[0][-1], run.loss[0][-1]),
        ):
            differences += [name] if one != other else []
        if differences:
            raise ValueError(f"{first.folder} and {run.folder} differ in {'; '.join(differences)}")
        twin = groups.setdefault(run.backend, {}).setdefault(seed, run)
        if twin is not run:
            raise ValueError(f"{twin.folder} and {run.folder} are both {run.backend} with seed {seed}: give one")
    return {backend: dict(sorted(of_seed.items())) for backend, of_seed in groups.items()}


def markdown(groups: Groups) -> str:
    """The table, a row a backend, and a line on the largest difference of means; a cell without a figure is empty.

    The standard deviation is that of the population, over seeds; images/s the median over all lines of the logs.
    """
    seeds = sorted({seed for of_seed in groups.values() for seed in of_seed})
    columns = [*(f"seed {seed}" for seed in seeds), "mean", "std, points", "raw pixels", "training, s", "images/s"]
    rows, means = [["backend", *columns], ["---"] * (1 + len(columns))], {}
    for backend, of_seed in groups.items():
        runs = list(of_seed.values())
        accuracies = [100 * run.accuracy for run in runs]
        means[backend] = float(np.mean(accuracies))
        cells = [f"{100 * of_seed[seed].accuracy:.2f} %" if seed in of_seed else "" for seed in seeds]
        cells += [f"{means[backend]:.2f} %", f"{np.std(accuracies):.2f}" if len(runs) > 1 else ""]
        cells += [_range([100 * raw for run in runs for raw in run.raw_pixels], "{:.2f} %")]
        cells += [_range([run.seconds for run in runs], "{:,.0f}")]
        rows.append([backend, *cells, f"{np.median(np.concatenate([run.speeds for run in runs])):,.0f}"])
    last = f"{runs[0].config.name}, {len(runs[0].issame):,} pairs of {runs[0].set}"
    if len(means) > 1:
        low, *_, high = sorted(means, key=lambda backend: means[backend])
        last += f"; largest difference between two means: {means[high] - means[low]:.2f} points ({high}, {low})"
    if any(list(one) != list(other) for one, other in itertools.pairwise(groups.values())):
        last += "; not over the same seeds"
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), "", last])


def main(arguments: Sequence[str]) -> int:
    """Print the table of the runs on the command line, and draw the figure; 2 if something is wrong with them."""
    options = tyro.cli(Options, prog="python -m common compare", args=arguments)
    form = options.figure.suffix[1:].lower() if options.figure else "none"
    try:
        if not options.runs or form not in ("none", "png", "svg"):
            raise ValueError("expected run folders, and with --figure a file .png or .svg")
        groups = grouped([read_run(folder, options.set) for folder in options.runs])
        print(markdown(groups))
        if options.figure is not None:
            by_backend = {backend: list(of_seed.values()) for backend, of_seed in groups.items()}
            losses = {backend: [run.loss for run in runs] for backend, runs in by_backend.items()}
            accuracies = {backend: [run.accuracy for run in runs] for backend, runs in by_backend.items()}
            raw = [raw for runs in by_backend.values() for run in runs for raw in run.raw_pixels]
            with atomic_write(options.figure) as file:
                file.write(comparison_figure(losses, accuracies, float(np.mean(raw)) if raw else None, form))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _read(path: Path, what: str, read: Callable[[dict[str, Any]], Any]) -> Any:
    try:
        value = read_json(path, what)
    except FileNotFoundError:
        raise ValueError(f"{path.parent}: expected a run folder, found no {path.name} in it") from None
    try:
        return read(value)
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: expected {what} ({error})") from None


def _range(values: list[float], form: str) -> str:
    return " to ".join(dict.fromkeys(form.format(value) for value in (min(values), max(values)))) if values else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
