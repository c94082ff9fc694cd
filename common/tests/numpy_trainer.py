"""A Trainer without a framework: a linear softmax on 4x4 pixels, so that the loop can be tested by itself."""

from typing import Any

import numpy as np

from common.config import RunConfig
from common.ranks import Alone


class NumpyTrainer:
    """The contract of `common.backend.Trainer`; `break_at` makes the loss of that step NaN."""

    def __init__(self, config: RunConfig, num_classes: int, break_at: int | None = None) -> None:
        self.ranks = Alone()
        random = np.random.default_rng(config.seed)
        self.weight = random.standard_normal((num_classes, 48)) * 0.01
        self.velocity = np.zeros_like(self.weight)
        self.steps, self.break_at = 0, break_at
        self.rates: list[float] = []
        self.loss = self.accuracy = 0.0
        self.bad_step: int | None = None

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        x = self.embed(images).astype(np.float64)
        logits = x @ self.weight.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        rows = np.arange(len(x))
        self.loss = float(-np.log(p[rows, labels]).mean())
        self.accuracy = float((p.argmax(1) == labels).mean())
        p[rows, labels] -= 1
        self.velocity = 0.9 * self.velocity + p.T @ x / len(x)
        self.weight = self.weight - learning_rate * self.velocity
        self.rates.append(learning_rate)
        self.steps += 1
        if self.steps == self.break_at:
            self.loss = float("nan")
            self.bad_step = self.bad_step or self.steps

    def metrics(self) -> dict[str, float]:
        return {"loss": self.loss, "accuracy": self.accuracy}

    def first_bad_step(self) -> int | None:
        return self.bad_step

    def embed(self, images: np.ndarray) -> np.ndarray:
        size = images.shape[2] // 4
        small = images.reshape(len(images), 3, 4, size, 4, size).mean((3, 5))
        return ((small - 127.5) / 128).reshape(len(images), -1).astype(np.float32)

    def state(self) -> dict[str, np.ndarray]:
        return {"head.class_weight": self.weight, "momentum.head.class_weight": self.velocity}

    def prototypes(self) -> np.ndarray:
        return self.weight

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        if state["head.class_weight"].shape != self.weight.shape:
            raise ValueError("another shape")
        self.weight = state["head.class_weight"]

    def load_state(self, state: dict[str, np.ndarray], step: int) -> None:
        self.load_weights(state)
        self.velocity, self.steps = state["momentum.head.class_weight"], step

    def describe(self) -> dict[str, Any]:
        return {"name": "numpy"}
