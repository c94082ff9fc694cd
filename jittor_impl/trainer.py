"""Backbone, head and optimiser on a device (`common.backend.Trainer`); `common.training.loop.fit` drives it."""

import hashlib
import inspect
from typing import Any

import jittor as jt
import numpy as np
from jittor import Var, nn

from common.backend import METRICS, check_labels
from common.config import HeadConfig, RunConfig
from common.weights.initialisation import draw_parameters
from jittor_impl import checkpoint, distributed, runtime
from jittor_impl.backbones import create_backbone
from jittor_impl.distributed import Group
from jittor_impl.losses import HEADS, SphereFaceHead
from jittor_impl.optimizer import create_optimizer, momentum_buffer, set_learning_rate


class Trainer:
    """See `common.backend.Trainer` for the contract of each method.

    Args:
        config: checked, also by `common.backend.Backend.check`.
        num_classes: identities of the training set.

    Raises:
        ValueError: no such device or backbone.
    """

    def __init__(self, config: RunConfig, num_classes: int) -> None:
        self._config, self._num_classes = config, num_classes
        self.device = runtime.resolve_device(distributed.local_device(config.device))
        self.ranks = distributed.join()
        self._dtype = runtime.PRECISIONS[config.precision]
        runtime.seed_everything(config.seed)
        self.backbone = create_backbone(
            config.model.backbone, config.model.embedding_size, config.data.image_size, config.model.dropout
        )
        self.head = create_head(config.head, config.model.embedding_size, num_classes)
        self._modules = _Modules(self.backbone, self.head)
        self._draw_weights()
        self._prepare_modules()
        self._optimizer = create_optimizer(
            [self.backbone, self.head], momentum=config.optimiser.momentum, weight_decay=config.optimiser.weight_decay
        )
        self._head_optimizer = self._create_head_optimizer()
        self._trained = self._trained_parameters()
        self._step = 0
        self._metrics: dict[str, Var] = {}
        self._first_bad_step = jt.array(-1, "int32")

    def _create_head_optimizer(self) -> jt.optim.SGD:
        """The optimiser of the steps that train the head alone; its buffers are those of the other."""
        optimiser = self._config.optimiser
        found = create_optimizer([self.head], momentum=optimiser.momentum, weight_decay=optimiser.weight_decay)
        for group in found.param_groups:
            group["values"] = [momentum_buffer(self._optimizer, parameter) for parameter in group["params"]]
        return found

    def _draw_weights(self) -> None:
        """The initial weights of all backends, from the seed."""
        specs = checkpoint.parameter_specs(self._modules)
        checkpoint.from_canonical(self._modules, draw_parameters(specs, self._config.seed))

    def _prepare_modules(self) -> None:
        """Synchronised BatchNorm, and the precision."""
        if self._config.sync_batch_norm and isinstance(self.ranks, Group):
            distributed.synchronise_batch_norm(self.backbone)
        if self._dtype == "float64":
            self._modules.float64()

    def _trained_parameters(self) -> dict[str, Var]:
        """Parameters that the optimiser updates, by canonical name."""
        trained = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        return {n: p for n, p in checkpoint.named_tensors(self._modules).items() if id(p) in trained}

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        check_labels(labels, self._num_classes)
        self._modules.train()
        # train() gives back gradients only to the module whose eval() took them
        (self.backbone.eval if self._is_frozen() else self.backbone.train)()
        if isinstance(self.head, SphereFaceHead):
            self.head.step = self._step
        # dropout depends on seed, step and rank only, so that a resumed run needs no random state
        runtime.seed_everything(_dropout_seed(self._config.seed, self._step, self.ranks.rank))
        self._compute_gradients(images, labels)
        self._update(learning_rate)
        self._remember_if_bad(self._metrics["loss"])
        # runs the queued operators, so that the graph does not grow and no draw waits for the next seed;
        # on a CUDA device the host does not wait
        jt.sync_all()
        self._step += 1

    def _compute_gradients(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Add up the gradients of the parts of a batch; the metrics are the parts' means."""
        parts = self._config.optimiser.accumulate
        totals: dict[str, Var] = {}
        for part_images, part_labels in zip(np.split(images, parts), np.split(labels, parts), strict=True):
            result = self.head(self._embeddings(part_images), jt.array(part_labels, "int64"))
            loss = result.loss / parts
            if isinstance(self.ranks, Group):
                loss.sync()  # sums over the ranks run inside the backward pass, and free what has not run before it
            self._optimizer_now().backward(loss)
            for name, value in result._asdict().items():
                if name in METRICS:
                    totals[name] = totals.get(name, 0) + value.detach() / parts
        self._metrics = totals
        if isinstance(self.ranks, Group):
            self._average_gradients(self.ranks)

    def _is_frozen(self) -> bool:
        """Whether the next step trains the head alone."""
        return self._step < self._config.model.freeze_backbone_steps

    def _embeddings(self, images: np.ndarray) -> Var:
        """The head's input in training; without a gradient, the backbone is not computed backwards."""
        if not self._is_frozen():
            return self._forward(images)
        with jt.no_grad():
            return self._forward(images)

    def _optimizer_now(self) -> jt.optim.SGD:
        return self._head_optimizer if self._is_frozen() else self._optimizer

    def _update(self, learning_rate: float) -> None:
        optimizer = self._optimizer_now()
        set_learning_rate(optimizer, learning_rate)
        if self._config.optimiser.clip_norm is not None:
            self._clip_gradients(self._config.optimiser.clip_norm)
        optimizer.step()

    def metrics(self) -> dict[str, float]:
        values = {name: value.item() for name, value in self._metrics.items()}
        if isinstance(self.ranks, Group):  # each rank has the metrics of its share
            mean = self.ranks.sum(jt.array(np.array(list(values.values())), "float64")).numpy() / self.ranks.count
            return dict(zip(values, mean.tolist(), strict=True))
        return values

    def first_bad_step(self) -> int | None:
        step = int(self._first_bad_step.item())
        steps = [step if rank == self.ranks.rank else 0 for rank in range(self.ranks.count)]
        if isinstance(self.ranks, Group):
            steps = self.ranks.sum(jt.array(np.array(steps), "int32")).numpy().tolist()
        return min((step for step in steps if step >= 0), default=None)

    def embed(self, images: np.ndarray) -> np.ndarray:
        self._modules.eval()
        with jt.no_grad():
            return self._forward(images).float32().numpy()

    def state(self) -> dict[str, np.ndarray]:
        return checkpoint.to_canonical(self._modules) | checkpoint.to_arrays(self._momentum())

    def prototypes(self) -> np.ndarray:
        return checkpoint.to_arrays({"head.class_weight": self.head.class_weight})["head.class_weight"]

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        kept = ("backbone.", "head.") if any(name.startswith("head.") for name in state) else ("backbone.",)
        weights = {name: array for name, array in state.items() if name.startswith(kept)}
        tensors = {name: t for name, t in checkpoint.named_tensors(self._modules).items() if name.startswith(kept)}
        checkpoint.from_arrays(tensors, weights)

    def load_state(self, state: dict[str, np.ndarray], step: int) -> None:
        tensors = checkpoint.named_tensors(self._modules) | self._momentum()
        kept = ("backbone.", "head.", "momentum.")  # not PyTorch's random states and loss scale
        checkpoint.from_arrays(tensors, {name: array for name, array in state.items() if name.startswith(kept)})
        self._step = step
        self._first_bad_step = jt.array(-1, "int32")

    def describe(self) -> dict[str, Any]:
        def count(module: nn.Module) -> int:
            return sum(v.numel() for n, v in checkpoint.named_tensors(module).items() if ".running_" not in n)

        return {
            **runtime.describe(self.device),
            "precision": self._config.precision,
            "ranks": self.ranks.count,
            "backbone_parameters": count(self.backbone),
            "head_parameters": count(self.head),
        }

    def _forward(self, images: np.ndarray) -> Var:
        x = jt.array(images).cast(self._dtype)
        return self.backbone((x - 127.5) / 128)

    def _average_gradients(self, group: Group) -> None:
        """Over the ranks: the loss is the mean over the batch, and all ranks have shares of the same size."""
        jt.sync_all()
        for parameters in self._optimizer_now().param_groups:
            for gradient in parameters["grads"]:
                gradient.update(group.sum(gradient) / jt.array(group.count, gradient.dtype))

    def _clip_gradients(self, clip_norm: float) -> None:
        gradients = [gradient for group in self._optimizer_now().param_groups for gradient in group["grads"]]
        # in float64: Jittor adds up one square after another, and in float32 the sum of a million is off by 0.1 %
        squares = [gradient.float64().sqr().sum() for gradient in gradients]
        factor = clip_norm / (jt.sqrt(sum(squares[1:], squares[0])) + 1e-6)
        factor = jt.minimum(factor, jt.ones_like(factor)).cast(self._dtype)
        for gradient in gradients:
            gradient.update(gradient * factor)

    def _remember_if_bad(self, loss: Var) -> None:
        """Remember the first step whose loss is not finite. Stays on the device, so that the host need not wait."""
        is_first = (self._first_bad_step < 0).logical_and(jt.isfinite(loss).logical_not())
        self._first_bad_step = jt.ternary(is_first, jt.array(self._step + 1, "int32"), self._first_bad_step)

    def _momentum(self) -> dict[str, Var]:
        return {f"momentum.{name}": momentum_buffer(self._optimizer, p) for name, p in self._trained.items()}


class _Modules(nn.Module):
    """Backbone and head under one root, which gives their parameters the prefixes of a checkpoint."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    drawn = f"{seed} {step} {rank}" if rank else f"{seed} {step}"
    return int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:4], "big")


def create_head(config: HeadConfig, embedding_size: int, num_classes: int) -> nn.Module:
    """The loss head that a configuration names, with those of its settings that the head takes."""
    kind = HEADS[config.name]
    taken = inspect.signature(kind.__init__).parameters
    settings = {name: value for name, value in vars(config).items() if name in taken and value is not None}
    return kind(embedding_size, num_classes, **settings)
