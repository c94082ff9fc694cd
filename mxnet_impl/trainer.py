"""Backbone, head and optimiser on a device (`common.backend.Trainer`); `common.training.loop.fit` drives it."""

import hashlib
import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.ndarray import NDArray

from common.backend import METRICS, check_labels
from common.config import HeadConfig, RunConfig
from common.weights.initialisation import draw_parameters
from mxnet_impl import checkpoint, distributed, runtime
from mxnet_impl.backbones import create_backbone
from mxnet_impl.distributed import Devices, Group
from mxnet_impl.losses import HEADS, SphereFaceHead
from mxnet_impl.optimizer import SGD, create_optimizer, momentum_buffer, set_learning_rate
from mxnet_impl.running_statistics import RunningStatistics


class Trainer:
    """See `common.backend.Trainer` for the contract of each method.

    Args:
        config: checked, also by `common.backend.Backend.check`.
        num_classes: identities of the training set.
        devices: each trains on its part of every batch; None: the devices of this process that `config` asks for.

    Raises:
        ValueError: no such device or backbone.
    """

    def __init__(self, config: RunConfig, num_classes: int, *, devices: Sequence[mx.Context] | None = None) -> None:
        self._config, self._num_classes = config, num_classes
        self.device, *others = devices or distributed.local_devices(config.device, config.devices)
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
        self._trained = self._trained_parameters()
        self._optimizer = create_optimizer(
            [self.backbone, self.head], momentum=config.optimiser.momentum, weight_decay=config.optimiser.weight_decay
        )
        self._head_optimizer = self._create_head_optimizer()
        self._step = 0
        self._metrics: dict[str, NDArray] = {}
        self._first_bad_step = self._no_bad_step()
        self._replicas = [self, *(Trainer(config, num_classes, devices=[device]) for device in others)]
        self._exchange = Devices([self.device, *others]) if others else None

    def _create_head_optimizer(self) -> SGD:
        """The optimiser of the steps that train the head alone; its buffers are those of the other."""
        optimiser = self._config.optimiser
        found = create_optimizer([self.head], momentum=optimiser.momentum, weight_decay=optimiser.weight_decay)
        found.buffers = {parameter: self._optimizer.buffers[parameter] for parameter in found.buffers}
        return found

    def _draw_weights(self) -> None:
        """The initial weights of all backends, from the seed."""
        self._modules.initialize(mx.init.Zero(), self.device)  # MXNet's own would be drawn for nothing
        specs = checkpoint.parameter_specs(self._modules)
        checkpoint.from_canonical(self._modules, draw_parameters(specs, self._config.seed))

    def _prepare_modules(self) -> None:
        """Precision, running statistics, and either synchronised BatchNorm or a hybrid backbone."""
        self._modules.cast(self._dtype)
        images = nd.zeros((1, 3, *[self._config.data.image_size] * 2), self.device, self._dtype)
        self._running_statistics = RunningStatistics(self.backbone, images)
        if self._config.sync_batch_norm and isinstance(self.ranks, Group):
            distributed.synchronise_batch_norm(self.backbone, self.ranks)
        else:
            self.backbone.hybridize(static_alloc=True)

    def _trained_parameters(self) -> dict[str, gluon.Parameter]:
        """Parameters that have a gradient, by canonical name."""
        parameters = checkpoint.named_parameters(self._modules)
        trained = {name: parameter for name, parameter in parameters.items() if parameter.grad_req != "null"}
        if self._config.optimiser.accumulate > 1:
            for parameter in trained.values():
                parameter.grad_req = "add"
        return trained

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        check_labels(labels, self._num_classes)
        count = len(self._replicas)
        several = self._exchange is not None or isinstance(self.ranks, Group)
        # the engine only queues the work, so that all devices compute at the same time
        for number, part in enumerate(zip(np.split(images, count), np.split(labels, count), strict=True)):
            stream = (self.ranks.rank + number,) if several else ()
            self._replicas[number]._compute_gradients(*part, *stream)
        self._average_gradients()
        for replica in self._replicas:
            replica._update(learning_rate)

    def _compute_gradients(self, images: np.ndarray, labels: np.ndarray, *stream: int) -> None:
        """Add up the gradients of the parts of a batch; the metrics are the parts' means.

        `stream` is the number of this device among several, which draw different random numbers.
        """
        if isinstance(self.head, SphereFaceHead):
            self.head.step = self._step
        # dropout depends on seed, step and device only, so that a resumed run needs no random state
        runtime.seed_everything(_dropout_seed(self._config.seed, self._step, *stream))
        parts = self._config.optimiser.accumulate
        totals: dict[str, NDArray] = {}
        if parts > 1:
            for parameter in self._trained.values():
                parameter.zero_grad()
        for part_images, part_labels in zip(np.split(images, parts), np.split(labels, parts), strict=True):
            together = len(part_images) * (self.ranks.count if self._config.sync_batch_norm else 1)
            part_labels = nd.array(part_labels, self.device, np.int64)
            with nullcontext() if self._is_frozen() else self._running_statistics.follow(together):
                frozen = self._frozen_embeddings(part_images) if self._is_frozen() else None
                with autograd.record():
                    result = self.head(self._forward(part_images) if frozen is None else frozen, part_labels)
                    loss = result.loss / parts
                loss.backward()
            for name, value in result._asdict().items():
                if name in METRICS:
                    totals[name] = totals.get(name, 0) + value.detach() / parts
        self._metrics = totals
        self._remember_if_bad(totals["loss"])

    def _is_frozen(self) -> bool:
        """Whether the next step trains the head alone."""
        return self._step < self._config.model.freeze_backbone_steps

    def _frozen_embeddings(self, images: np.ndarray) -> NDArray:
        """The head's input while it is trained alone. MXNet loses its gradients if the input has none."""
        embeddings = self._forward(images)
        embeddings.attach_grad()
        return embeddings

    def _update(self, learning_rate: float) -> None:
        optimizer = self._head_optimizer if self._is_frozen() else self._optimizer
        set_learning_rate(optimizer, learning_rate)
        if self._config.optimiser.clip_norm is not None:
            self._clip_gradients(self._config.optimiser.clip_norm)
        optimizer.step()
        self._step += 1

    def metrics(self) -> dict[str, float]:
        metrics = {
            name: float(np.mean([replica._metrics[name].asscalar() for replica in self._replicas]))
            for name in self._metrics
        }
        if isinstance(self.ranks, Group):  # each rank has the metrics of its share
            values = nd.array(list(metrics.values()), dtype=np.float64)
            self.ranks.sum({"metrics": values})
            metrics = dict(zip(metrics, (values / self.ranks.count).asnumpy().tolist(), strict=True))
        return metrics

    def first_bad_step(self) -> int | None:
        steps = np.array([replica._first_bad_step.asscalar() for replica in self._replicas])
        if isinstance(self.ranks, Group):
            of_ranks = nd.zeros(self.ranks.count, dtype=np.float64)
            of_ranks[self.ranks.rank] = steps[0]  # a rank has one device
            self.ranks.sum({"first_bad_step": of_ranks})
            steps = of_ranks.asnumpy()
        return min((int(step) for step in steps if step >= 0), default=None)

    def embed(self, images: np.ndarray) -> np.ndarray:
        return self._forward(images).astype(np.float32).asnumpy()

    def state(self) -> dict[str, np.ndarray]:
        return checkpoint.to_canonical(self._modules) | checkpoint.to_arrays(self._momentum())

    def prototypes(self) -> np.ndarray:
        return checkpoint.to_arrays({"head.class_weight": self.head.class_weight.data()})["head.class_weight"]

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        kept = ("backbone.", "head.") if any(name.startswith("head.") for name in state) else ("backbone.",)
        weights = {name: array for name, array in state.items() if name.startswith(kept)}
        for replica in self._replicas:
            tensors = {
                name: t for name, t in checkpoint.named_tensors(replica._modules).items() if name.startswith(kept)
            }
            checkpoint.from_arrays(tensors, weights)

    def load_state(self, state: dict[str, np.ndarray], step: int) -> None:
        tensors = checkpoint.named_tensors(self._modules) | self._momentum()
        kept = ("backbone.", "head.", "momentum.")  # not PyTorch's random states and loss scale
        checkpoint.from_arrays(tensors, {name: array for name, array in state.items() if name.startswith(kept)})
        self._step = step
        self._first_bad_step = self._no_bad_step()
        for replica in self._replicas[1:]:
            replica.load_state(state, step)

    def describe(self) -> dict[str, Any]:
        def count(module: gluon.Block) -> int:
            tensors = checkpoint.named_tensors(module)
            return sum(tensor.size for name, tensor in tensors.items() if ".running_" not in name)

        return {
            **runtime.describe(self.device),
            "precision": self._config.precision,
            "ranks": self.ranks.count * len(self._replicas),
            "backbone_parameters": count(self.backbone),
            "head_parameters": count(self.head),
        }

    def _forward(self, images: np.ndarray) -> NDArray:
        x = nd.array(images, self.device, np.uint8).astype(self._dtype)
        return self.backbone((x - 127.5) / 128)

    def _average_gradients(self) -> None:
        """Over the devices of this process, or over the ranks."""
        if self._exchange is not None:
            gradients = [[p.grad() for p in replica._trained.values()] for replica in self._replicas]
            self._exchange.average(dict(zip(self._trained, zip(*gradients, strict=True), strict=True)))
        elif isinstance(self.ranks, Group):
            sums = {name: parameter.grad() for name, parameter in self._trained.items()}
            self.ranks.sum(sums)
            for gradient in sums.values():
                gradient /= self.ranks.count

    def _clip_gradients(self, clip_norm: float) -> None:
        gradients = [parameter.grad() for parameter in self._trained.values()]
        norm = nd.sqrt(nd.add_n(*[nd.sum(nd.square(gradient)) for gradient in gradients]))
        factor = nd.minimum(clip_norm / (norm + 1e-6), 1)
        for gradient in gradients:
            gradient *= factor.reshape([1] * gradient.ndim)

    def _no_bad_step(self) -> NDArray:
        return nd.full((1,), -1, self.device, np.float64)

    def _remember_if_bad(self, loss: NDArray) -> None:
        """Remember the first step whose loss is not finite. Stays on the device, so that the host need not wait."""
        is_finite = nd.contrib.isfinite(loss).astype(np.float64)
        is_first = (self._first_bad_step < 0) * (1 - is_finite)
        self._first_bad_step = nd.where(is_first, nd.ones_like(is_first) * (self._step + 1), self._first_bad_step)

    def _momentum(self) -> dict[str, NDArray]:
        return {f"momentum.{name}": momentum_buffer(self._optimizer, p) for name, p in self._trained.items()}


class _Modules(gluon.Block):
    """Backbone and head under one root, which gives their parameters the prefixes of a checkpoint."""

    def __init__(self, backbone: gluon.HybridBlock, head: gluon.Block) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


def _dropout_seed(*stream: int) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(map(str, stream)).encode()).digest()[:4], "big")


def create_head(config: HeadConfig, embedding_size: int, num_classes: int) -> gluon.Block:
    """The loss head that a configuration names, with those of its settings that the head takes."""
    kind = HEADS[config.name]
    taken = inspect.signature(kind.__init__).parameters
    settings = {name: value for name, value in vars(config).items() if name in taken and value is not None}
    return kind(embedding_size, num_classes, **settings)
