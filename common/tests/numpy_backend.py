"""A backend without a framework, whose embeddings do depend on its weights: for what is built on an opened source."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from common import config as configuration
from common.backend import Backend
from common.config import DataConfig, RunConfig
from common.weights.checkpoint import check_arrays, save_checkpoint

SIZE, DIMENSIONS = 16, 8


class LinearTrainer:
    """Pixels times backbone.weight; only what evaluation needs of a `common.backend.Trainer`."""

    def __init__(self, config: RunConfig, num_classes: int) -> None:
        self.config = config
        random = np.random.default_rng(config.seed)
        self.arrays = {
            "backbone.weight": random.normal(size=(3 * SIZE * SIZE, DIMENSIONS)).astype(np.float32),
            "head.class_weight": random.normal(size=(num_classes, DIMENSIONS)).astype(np.float32),
        }

    def embed(self, images: np.ndarray) -> np.ndarray:
        return (images.reshape(len(images), -1).astype(np.float32) / 128 - 1) @ self.arrays["backbone.weight"]

    def state(self) -> dict[str, np.ndarray]:
        return dict(self.arrays)

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        check_arrays({name: (str(array.dtype), array.shape) for name, array in self.arrays.items()}, state)
        self.arrays = dict(state)


@dataclass(frozen=True)
class LinearBackend(Backend):
    """What `main` is given."""

    name: str = "linear"

    def create_trainer(self, config: RunConfig, num_classes: int) -> Any:
        return LinearTrainer(config, num_classes)


def linear_config(root: Path, **options: Any) -> RunConfig:
    data = DataConfig(root=root, image_size=SIZE, evaluate_on=("lfw",))
    return replace(RunConfig(name="test", data=data, seed=5), **options)


def trained(config: RunConfig, classes: int = 2) -> LinearTrainer:
    """A trainer whose weights are no longer the drawn ones."""
    trainer = LinearTrainer(config, classes)
    trainer.arrays = {name: array - 0.5 for name, array in trainer.arrays.items()}
    return trainer


def write_checkpoint(folder: Path, config: RunConfig, step: int = 20, classes: int | None = 7) -> Path:
    """A checkpoint of a `trained` network under `folder`/checkpoints; without a head for None classes."""
    arrays = trained(config, classes or 1).state()
    if classes is None:
        del arrays["head.class_weight"]
    return save_checkpoint(folder / "checkpoints", step, arrays, {"config": configuration.to_json(config)})
