"""Backbone, head and optimiser on a device: what `common.training.loop.fit` drives (`common.backend.Trainer`)."""

import hashlib
from collections.abc import Sequence
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.ndarray import NDArray

from common.config import HeadConfig, RunConfig
from common.weights.initialisation import draw_parameters
from mxnet_impl import checkpoint, distributed, runtime
from mxnet_impl.backbones import create_backbone
from mxnet_impl.distributed import Devices, Group
from mxnet_impl.losses.margin_heads import ArcFaceHead, CosFaceHead, NormalisedSoftmaxHead, SoftmaxHead, SphereFaceHead
from mxnet_impl.losses.sface import SFaceHead
from mxnet_impl.optimizer import create_optimizer, momentum_buffer, set_learning_rate
from mxnet_impl.running_statistics import RunningStatistics


class Trainer:
    """See `common.backend.Trainer` for the contract of each method.

    Args:
        config: checked.
        num_classes: identities of the training set.
        devices: each trains on its part of every batch; None: those that the configuration asks for, of this process.

    Raises:
        ValueError: no such device, backbone or precision, or an option that only PyTorch has.
    """

    def __init__(self, config: RunConfig, num_classes: int, *, devices: Sequence[mx.Context] | None = None) -> None:
        if config.precision not in runtime.PRECISIONS:
            raise ValueError(
                f"precision: expected {' or '.join(runtime.PRECISIONS)} with MXNet, got {config.precision!r}"
            )
        if config.compile:
            raise ValueError("compile: expected false with MXNet, got true; torch.compile is PyTorch's")
        if config.head.sample_rate != 1:
            raise ValueError(f"head.sample_rate: expected 1 with MXNet, got {config.head.sample_rate}; PyTorch has it")
        self.device, *others = devices or distributed.local_devices(config.device, config.devices)
        self.ranks = distributed.join()
        if config.sync_batch_norm and others:
            raise ValueError(
                "sync_batch_norm: expected false with several GPUs in one process of MXNet, got true; "
                "start a process for each by hand (docs/many_devices.md)"
            )
        self._config = config
        self._num_classes = num_classes
        runtime.seed_everything(config.seed)
        backbone = create_backbone(
            config.model.backbone, config.model.embedding_size, config.data.image_size, config.model.dropout
        )
        head = create_head(config.head, config.model.embedding_size, num_classes)
        self._modules = _Modules(backbone, head)
        self._modules.initialize(ctx=self.device)
        checkpoint.from_canonical(
            self._modules, draw_parameters(checkpoint.parameter_specs(self._modules), config.seed)
        )
        self._dtype = runtime.PRECISIONS[config.precision]
        self._modules.cast(self._dtype)
        self.backbone, self.head = backbone, head
        size = config.data.image_size
        self._running_statistics = RunningStatistics(backbone, nd.zeros((1, 3, size, size), self.device, self._dtype))
        if config.sync_batch_norm and isinstance(self.ranks, Group):
            distributed.synchronise_batch_norm(backbone, self.ranks)
        else:
            backbone.hybridize(static_alloc=True)
        parameters = checkpoint.named_parameters(self._modules)
        self._trained = {name: p for name, p in parameters.items() if p.grad_req != "null"}
        if config.optimiser.accumulate > 1:
            for parameter in self._trained.values():
                parameter.grad_req = "add"
        rule = {"momentum": config.optimiser.momentum, "weight_decay": config.optimiser.weight_decay}
        self._optimizer = create_optimizer([backbone, head], **rule)
        self._step = 0
        self._metrics: dict[str, NDArray] = {}
        self._first_bad_step = self._no_bad_step()
        self._replicas = [self, *(Trainer(config, num_classes, devices=[device]) for device in others)]
        self._exchange = Devices([self.device, *others]) if others else None

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        self._check_labels(labels)
        count = len(self._replicas)
        # the host only notes down what the devices do, so that they work at the same time
        for number, part in enumerate(zip(np.split(images, count), np.split(labels, count), strict=True)):
            several = self._exchange is not None or isinstance(self.ranks, Group)
            self._replicas[number]._compute_gradients(*part, *((self.ranks.rank + number,) if several else ()))
        if self._exchange is not None:
            gradients = [[p.grad() for p in replica._trained.values()] for replica in self._replicas]
            self._exchange.average(dict(zip(self._trained, zip(*gradients, strict=True), strict=True)))
        elif isinstance(self.ranks, Group):
            self._average_gradients()
        for replica in self._replicas:
            replica._update(learning_rate)

    def _compute_gradients(self, images: np.ndarray, labels: np.ndarray, *stream: int) -> None:
        """Of all parts of a batch; of several devices or ranks each has a stream of random numbers."""
        if isinstance(self.head, SphereFaceHead):
            self.head.step = self._step
        # dropout depends on seed, step and rank only, so that a resumed run needs no state of a generator
        runtime.seed_everything(_dropout_seed(self._config.seed, self._step, *stream))
        parts = self._config.optimiser.accumulate
        totals: dict[str, NDArray] = {}
        if parts > 1:
            for parameter in self._trained.values():
                parameter.zero_grad()
        for part_images, part_labels in zip(np.split(images, parts), np.split(labels, parts), strict=True):
            together = len(part_images) * (self.ranks.count if self._config.sync_batch_norm else 1)
            with self._running_statistics.follow(together):
                with autograd.record():
                    result = self.head(self._forward(part_images), nd.array(part_labels, self.device, np.int64))
                    loss = result.loss / parts
                loss.backward()
            for name, value in result._asdict().items():
                totals[name] = totals.get(name, 0) + value.detach() / parts

        self._metrics = totals
        self._remember_if_bad(totals["loss"])

    def _update(self, learning_rate: float) -> None:
        set_learning_rate(self._optimizer, learning_rate)
        if self._config.optimiser.clip_norm is not None:
            self._clip_gradients(self._config.optimiser.clip_norm)
        self._optimizer.step()
        self._step += 1

    def metrics(self) -> dict[str, float]:
        metrics = {
            name: float(np.mean([replica._metrics[name].asscalar() for replica in self._replicas]))
            for name in self._metrics
        }
        if isinstance(self.ranks, Group):  # each rank's are those of its share
            values = nd.array(list(metrics.values()), dtype=np.float64)
            self.ranks.sum({"metrics": values})
            metrics = dict(zip(metrics, (values / self.ranks.count).asnumpy().tolist(), strict=True))
        return metrics

    def first_bad_step(self) -> int | None:
        steps = np.array([replica._first_bad_step.asscalar() for replica in self._replicas])
        if isinstance(self.ranks, Group):
            of_ranks = nd.zeros(self.ranks.count, dtype=np.float64)
            of_ranks[self.ranks.rank] = steps[0]  # one device a rank
            self.ranks.sum({"first_bad_step": of_ranks})
            steps = of_ranks.asnumpy()
        return min((int(step) for step in steps if step >= 0), default=None)

    def embed(self, images: np.ndarray) -> np.ndarray:
        return self._forward(images).astype(np.float32).asnumpy()

    def state(self) -> dict[str, np.ndarray]:
        return checkpoint.to_canonical(self._modules) | checkpoint.to_arrays(self._momentum())

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        weights = {name: array for name, array in state.items() if name.startswith(("backbone.", "head."))}
        for replica in self._replicas:
            checkpoint.from_canonical(replica._modules, weights)

    def load_state(self, state: dict[str, np.ndarray], step: int) -> None:
        tensors = checkpoint.named_tensors(self._modules) | self._momentum()
        kept = ("backbone.", "head.", "momentum.")  # random states and loss scales of other backends are of no use here
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
        gradients = {name: parameter.grad() for name, parameter in self._trained.items()}
        self.ranks.sum(gradients)
        for gradient in gradients.values():
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
        """Without looking at the value: that would make the host wait for the device."""
        is_finite = nd.contrib.isfinite(loss).astype(np.float64)
        is_first = (self._first_bad_step < 0) * (1 - is_finite)
        self._first_bad_step = nd.where(is_first, nd.ones_like(is_first) * (self._step + 1), self._first_bad_step)

    def _momentum(self) -> dict[str, NDArray]:
        return {f"momentum.{name}": momentum_buffer(self._optimizer, p) for name, p in self._trained.items()}

    def _check_labels(self, labels: np.ndarray) -> None:
        bad = np.flatnonzero((labels < 0) | (labels >= self._num_classes))
        if len(bad):
            row = bad[0]
            raise ValueError(f"labels: expected 0..{self._num_classes - 1}, got {labels[row]} at row {row}")


class _Modules(gluon.Block):
    """Backbone and head under one root, which gives their parameters the prefixes of a checkpoint."""

    def __init__(self, backbone: gluon.HybridBlock, head: gluon.Block) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head


def _dropout_seed(*stream: int) -> int:
    return int.from_bytes(hashlib.sha256(" ".join(map(str, stream)).encode()).digest()[:4], "big")


def create_head(config: HeadConfig, embedding_size: int, num_classes: int) -> gluon.Block:
    """The loss head that a configuration names, over `num_classes` prototypes."""
    margin = {} if config.margin is None else {"margin": config.margin}
    if config.name == "softmax":
        return SoftmaxHead(embedding_size, num_classes)
    if config.name == "normalised-softmax":
        return NormalisedSoftmaxHead(embedding_size, num_classes, scale=config.scale)
    if config.name == "cosface":
        return CosFaceHead(embedding_size, num_classes, scale=config.scale, **margin)
    if config.name == "arcface":
        return ArcFaceHead(embedding_size, num_classes, scale=config.scale, **margin)
    if config.name == "sphereface":
        return SphereFaceHead(embedding_size, num_classes)
    return SFaceHead(
        embedding_size,
        num_classes,
        scale=config.scale,
        intra_slope=config.intra_slope,
        inter_slope=config.inter_slope,
        intra_center=config.intra_center,
        inter_center=config.inter_center,
        form=config.form,
        epsilon=config.epsilon,
    )
