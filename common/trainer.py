"""The one thing that a backend gives to the loop: a Trainer. NumPy in, NumPy out."""

from typing import Any, Protocol

import numpy as np

from common.ranks import Ranks


class Trainer(Protocol):
    """A backbone, a head and their optimiser on a device; of several ranks, each has one and calls the same methods."""

    ranks: Ranks

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
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

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Raw embeddings (N, D) float32 of (N, 3, S, S) uint8 images, in evaluation mode."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything a resumed run needs: "backbone.*", "head.*", "momentum.*" under canonical names, and the rest.

        The same whatever the number of ranks; every rank calls it, rank 0 gets all of it, the others need not.
        """

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        """Take over "backbone.*" and "head.*" of a `state()`, for evaluation; raises as `load_state`."""

    def load_state(self, state: dict[str, np.ndarray], step: int) -> None:
        """Take over a `state()` after `step` steps; a ValueError says what does not fit, and then nothing changed."""

    def describe(self) -> dict[str, Any]:
        """Framework, version, device, threads, parameter counts: JSON values for the run's record."""
