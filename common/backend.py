"""What a backend is: a package of one framework, whose Trainer the loop drives. NumPy in, NumPy out."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from common.ranks import Ranks

if TYPE_CHECKING:  # at run time, `info` must work where packages are missing
    import numpy as np

    from common.config import RunConfig

BACKENDS = ("pytorch", "mxnet", "jittor")


@dataclass(frozen=True)
class Backend:
    """A framework's package: it has trainer.Trainer, runtime.describe and backbones.BACKBONES."""

    name: str

    @property
    def package(self) -> str:
        return f"{self.name}_impl"

    def create_trainer(self, config: "RunConfig", num_classes: int) -> "Trainer":
        return self.module("trainer").Trainer(config, num_classes)

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")


class Trainer(Protocol):
    """A backbone, a head and their optimiser on a device; of several ranks, each has one and calls the same methods."""

    ranks: Ranks

    def train_step(self, images: "np.ndarray", labels: "np.ndarray", learning_rate: float) -> None:
        """One optimiser step.

        Args:
            images: (N, 3, S, S) uint8, RGB, this rank's share of the batch; normalised on the device.
            labels: (N,) int64.
            learning_rate: of this step.

        Raises:
            ValueError: a label is out of range.

        Must not make the host wait for the device.
        """

    def metrics(self) -> dict[str, float]:
        """Loss and metrics of the last step over all ranks (SFaceResult's fields); waits for the device."""

    def first_bad_step(self) -> int | None:
        """The first step, from 1, whose loss was not finite, since the start or a resume; waits for the device."""

    def embed(self, images: "np.ndarray") -> "np.ndarray":
        """Raw embeddings (N, D) float32 of (N, 3, S, S) uint8 images, in evaluation mode."""

    def state(self) -> "dict[str, np.ndarray]":
        """Everything a resumed run needs: "backbone.*", "head.*", "momentum.*" under canonical names, and the rest.

        The same whatever the number of ranks; every rank calls it, rank 0 gets all of it, the others need not.
        """

    def load_weights(self, state: "dict[str, np.ndarray]") -> None:
        """Take over "backbone.*" and "head.*" of a `state()`, for evaluation; raises as `load_state`."""

    def load_state(self, state: "dict[str, np.ndarray]", step: int) -> None:
        """Take over a `state()` after `step` steps; a ValueError says what does not fit, and then nothing changed."""

    def describe(self) -> dict[str, Any]:
        """Framework, version, device, threads, parameter counts: JSON values for the run's record."""
