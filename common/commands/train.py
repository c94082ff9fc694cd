"""`train`: a recipe from its first step, or from the last checkpoint, to the report."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import tyro

from common import config as configuration
from common.backend import Backend
from common.config import RunConfig
from common.datasets.pair_sets import find_pair_sets
from common.datasets.training_sets import Dataset, open_dataset
from common.evaluation.embedding import Embed
from common.evaluation.evaluate import RAW_PIXELS, evaluate, raw_pixels
from common.evaluation.results import figure_table, load_evaluation, save_evaluation
from common.evaluation.source import open_source
from common.io.files import file_stem
from common.io.text import did_you_mean, printable, text_table
from common.recipes import RECIPES, how_to_get_data
from common.reports.published import pair_set_files
from common.training.loop import Progress, fit
from common.training.run_log import LOG
from common.weights.checkpoint import latest_checkpoint


def run(backend: Backend, arguments: list[str]) -> int:
    """Train a recipe to its end, evaluate it, and write the report; raises as `common.training.loop.fit`."""
    train_config(backend, parse_recipe(backend, "train", RECIPES, arguments), ["train", *arguments])
    return 0


def parse_recipe(
    backend: Backend, command: str, recipes: Mapping[str, Callable[[], RunConfig]], arguments: list[str]
) -> RunConfig:
    """The checked configuration of `COMMAND RECIPE [--field value ...]`."""
    arguments = [_british(argument) for argument in arguments]
    if arguments and not arguments[0].startswith("-") and arguments[0].replace("_", "-") not in recipes:
        meant = did_you_mean(arguments[0], recipes)
        raise ValueError(f"expected one of {', '.join(recipes)}, got {arguments[0]!r}{meant}")
    described = {name: ((recipe.__doc__ or "").strip(), recipe()) for name, recipe in recipes.items()}
    config = tyro.extras.overridable_config_cli(
        described, prog=f"python -m {backend.package} {command}", args=arguments
    )
    configuration.check(config)
    return config


def _british(argument: str) -> str:
    """An argument in the spelling of the fields: --optimizer.batch-size is taken for --optimiser.batch-size."""
    argument = re.sub(r"^--(no-)?optimizer\.", r"--\1optimiser.", argument)
    return re.sub(r"^(--head.name=)?normalized-softmax$", r"\1normalised-softmax", argument)


def open_training_set(config: RunConfig) -> Dataset:
    """Open the training set; if there is no folder, the error says what makes it."""
    try:
        return open_dataset(config.data.root, config.data.kind)
    except FileNotFoundError as error:
        advice = "" if config.data.root.is_dir() else how_to_get_data(config)
        raise FileNotFoundError(f"{error}; {advice}" if advice else str(error)) from None


def run_folder(backend: Backend, config: RunConfig) -> Path:
    """The run folder of a configuration."""
    return config.out or Path("runs") / backend.name / f"{config.name}-seed{config.seed}"


def train_config(backend: Backend, config: RunConfig, command: list[str]) -> None:
    """Train a checked configuration, evaluate it, and write the report; raises as `common.training.loop.fit`.

    For several devices, a backend that needs a process for each starts `command` once more in each of them.
    """
    backend.require_framework()
    folder = run_folder(backend, config)
    if config.devices > 1:
        launcher = backend.module("launcher")
        if launcher.needs_launcher(config.device):
            launcher.launch(config.devices, command)
            _require_results(folder)
            return
    dataset = open_training_set(config)
    trainer = backend.create_trainer(config, dataset.num_classes)
    if trainer.ranks.rank == 0:
        print(f"{len(dataset)} images of {dataset.num_classes} identities in {config.data.root}; run folder {folder}")
        for note in dataset.notes:
            print(printable(f"note: {note}"))
    progress = fit(trainer, dataset, config, folder)
    if trainer.ranks.rank == 0:
        _require_results(folder)
        _report(backend, config, folder, progress)


def _require_results(folder: Path) -> None:
    """Raise an OSError unless training left a log and a checkpoint: a framework may end processes with status 0."""
    for what, there in (("log", (folder / LOG).is_file()), ("checkpoint", latest_checkpoint(folder))):
        if not there:
            raise OSError(f"training ended without an error, but there is no {what} in {folder}; start it again")


def _report(backend: Backend, config: RunConfig, folder: Path, progress: Progress) -> None:
    if config.data.raw_pixels:
        _evaluate_baseline(config, folder, RAW_PIXELS, raw_pixels)
    if config.data.baseline is not None:
        _evaluate_network(backend, config, folder, config.data.baseline)
    from common.reports.run_report import write_report  # only here: most ranks and many runs never come to it

    report = write_report(folder)
    saved = [load_evaluation(path) for path in pair_set_files(folder / "evaluation")]

    print(f"\n{progress.step} steps in {progress.seconds:.0f} s of training", end="")
    print(f"; {progress.skipped} images skipped" if progress.skipped else "")
    if saved:
        own = f"{config.head.name} ({backend.name})"
        rows = [(f"{(s.method or own).replace('_', ' ')} on {s.evaluation.name}", s.evaluation) for s in saved]
        print("\n" + text_table(*figure_table(rows, "method", ("accuracy ± std", "AUC", "EER"))))
    print(f"\ncheckpoint  {latest_checkpoint(folder)}\nlog         {folder / 'log.jsonl'}\nreport      {report}")


def _evaluate_network(backend: Backend, config: RunConfig, folder: Path, path: Path) -> None:
    """Evaluate another network on the sets of the run."""
    if not path.exists():
        print(f"\nbaseline {path}: not found, so it is left out")
        return
    source, size = open_source(path, backend, config.device), config.data.image_size
    if source.embed is None or source.image_size != size:
        raise ValueError(f"data.baseline: expected a network of images of {size} pixels, got {source.description}")
    _evaluate_baseline(config, folder, file_stem(path.stem), source.embed)


def _evaluate_baseline(config: RunConfig, folder: Path, method: str, embed: Embed) -> None:
    data = config.data
    pair_sets, _ = find_pair_sets(data.root, data.evaluate_on)
    for pair_set in pair_sets.values():
        evaluation = evaluate(embed, pair_set, image_size=data.image_size, on_wrong_size=data.on_wrong_size)
        save_evaluation(folder / "evaluation", evaluation, 0, method=method)
