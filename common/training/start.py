"""Weights to start from, in place of drawn ones: those of a run, of a checkpoint, or of published weights."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common import config as configuration
from common.config import RunConfig
from common.weights.checkpoint import WEIGHTS, latest_checkpoint, load_checkpoint

OPTION = "model.weights"


class Start(NamedTuple):
    """Weights that fit a run."""

    arrays: dict[str, np.ndarray]  # "backbone.*", and "head.*" where the head fits too, in the dtype of the run
    record: dict[str, Any]  # for the run's record: path, step, SHA-256, what was taken


def read_start(path: Path, config: RunConfig, num_classes: int) -> Start:
    """Read the backbone of a checkpoint, and its head where that has the same loss and number of classes.

    Args:
        path: a run folder (its latest checkpoint), or a checkpoint folder; `import` makes one, too.
        config: the run that is to start.
        num_classes: identities of its training set.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is no checkpoint, a damaged one, or of another network; the message says which option to change.
    """
    if path.is_file():
        raise ValueError(
            f"{OPTION}: expected the folder of a checkpoint, got a file, {path}; `import` makes a folder of it"
        )
    folder = latest_checkpoint(path) or path
    try:
        saved = load_checkpoint(folder)
        before = configuration.from_json(saved.state.get("config"))
    except (OSError, ValueError) as error:
        raise type(error)(f"{OPTION}: {error}") from None
    for name, found, wanted in (
        ("model.backbone", before.model.backbone, config.model.backbone),
        ("model.embedding-size", before.model.embedding_size, config.model.embedding_size),
        ("data.image-size", before.data.image_size, config.data.image_size),
    ):
        if found != wanted:
            raise ValueError(
                f"{OPTION}: {folder} has {name} {found}, this run {wanted}; --{name} {found} makes them fit"
            )
    class_weight = saved.arrays.get("head.class_weight")
    fits = before.head.name == config.head.name and class_weight is not None and len(class_weight) == num_classes
    kept = ("backbone.", "head.") if fits else ("backbone.",)
    dtype = np.float64 if config.precision == "fp64" else np.float32
    arrays = {name: array.astype(dtype, copy=False) for name, array in saved.arrays.items() if name.startswith(kept)}
    record = {
        "path": str(path),
        "step": saved.step,
        "sha256": saved.state["files"][WEIGHTS]["sha256"],
        "taken": "backbone and head" if fits else "backbone",
    }
    return Start(arrays, record)
