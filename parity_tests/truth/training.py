"""The truth for training: whole runs in float64 NumPy."""

from dataclasses import dataclass, field

import numpy as np

from common.config import RunConfig
from common.weights.initialisation import ParameterSpec, draw_parameter
from parity_tests.comparison import FLOAT32_ROUNDING, SFACE_PARAMETERS
from parity_tests.truth import sface as oracle
from parity_tests.truth.networks import Tape, Value, copy_arrays, forward, is_decayed, is_trained, rounded

MEAN, HALF_RANGE = 127.5, 128  # of the pixels


@dataclass
class TrueTrainer:
    """A backbone with an SFace head, trained by v = m v + (g + wd w), w = w - lr v.

    Args:
        config: backbone, embedding size, SFace's parameters, momentum and weight decay; no dropout.
        num_classes: prototypes.
        noise: relative size of a random error of every operation's output and gradient, and of every new weight, there
            a rounding of float32 at most; shows how far rounding (in float32 up to 6e-8) moves a trajectory.
        noise_seed: of these errors.
    """

    config: RunConfig
    num_classes: int
    noise: float = 0.0
    noise_seed: int = 0
    backbone: dict[str, np.ndarray] = field(default_factory=dict)
    momentum: dict[str, np.ndarray] = field(default_factory=dict)
    specs: dict[str, ParameterSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size, seed = self.config.data.image_size, self.config.seed
        drawing = Tape({}, seed=seed)
        forward(drawing, self.config.model.backbone, Value(np.zeros((1, 3, size, size))), self._embedding_size)
        self.backbone = drawing.arrays
        head = ParameterSpec("class_weight", (self.num_classes, self._embedding_size))
        self.class_weight = draw_parameter("head.class_weight", head, seed).astype(np.float64)
        self.specs = {f"backbone.{name}": spec for name, spec in drawing.specs.items()} | {"head.class_weight": head}
        self.momentum = {
            name: np.zeros(spec.shape)
            for name, spec in self.specs.items()
            if is_trained(name.removeprefix("backbone."), spec, self.config.model.backbone)
        }
        self._random = np.random.default_rng(self.noise_seed)

    @property
    def _embedding_size(self) -> int:
        return self.config.model.embedding_size

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> float:
        """One optimiser step; the loss before it."""
        arrays = self.backbone
        if self.noise > FLOAT32_ROUNDING:  # the weights are float32; only products round them
            arrays = rounded(arrays, self.noise, self._random)
        tape = Tape(arrays, training=True, noise=self.noise, random=self._random)
        x = (images.astype(np.float64) - MEAN) / HALF_RANGE
        embeddings = forward(tape, self.config.model.backbone, Value(x), self._embedding_size)
        parameters = {name: getattr(self.config.head, name) for name in SFACE_PARAMETERS}
        self.backbone |= {name: array for name, array in arrays.items() if ".running_" in name}
        truth = oracle.sface(embeddings.data, self.class_weight, labels, **parameters)
        tape.backward(embeddings, truth.grad_embeddings)
        gradients = {f"backbone.{name}": value.grad for name, value in tape.parameters.items()}
        gradients["head.class_weight"] = truth.grad_class_weight
        optimiser = self.config.optimiser
        for name, buffer in self.momentum.items():
            weight = self._weights()[name]
            decay = optimiser.weight_decay if is_decayed(self.specs[name]) else 0.0
            buffer[...] = optimiser.momentum * buffer + (gradients[name] + decay * weight)
            weight -= learning_rate * buffer
            if self.noise:
                weight *= 1 + min(self.noise, FLOAT32_ROUNDING) * self._random.choice([-1.0, 1.0], weight.shape)
        return truth.loss

    def state(self) -> dict[str, np.ndarray]:
        """As `common.backend.Trainer.state`, float64."""
        return copy_arrays(self._weights() | self._momentum())

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        for name, array in (self._weights() | self._momentum()).items():
            array[...] = state[name]

    def _weights(self) -> dict[str, np.ndarray]:
        backbone = {f"backbone.{name}": array for name, array in self.backbone.items()}
        return backbone | {"head.class_weight": self.class_weight}

    def _momentum(self) -> dict[str, np.ndarray]:
        return {f"momentum.{name}": buffer for name, buffer in self.momentum.items()}
