"""MXNet's own training loop, which `python -m benchmarks` compares the trainer with, and a count of waits."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.ndarray import NDArray

from common.config import RunConfig
from common.weights.initialisation import draw_parameters
from mxnet_impl import checkpoint, runtime
from mxnet_impl.backbones import create_backbone
from mxnet_impl.trainer import _Modules, create_head


class Bare:
    """Backbone, head and Gluon's Trainer on one normalised batch on the device.

    Threads are the trainer's, so the ratio of the two is the cost of the trainer's own work.

    The arguments are those of `benchmarks.backends.pytorch.bare.Bare`.
    """

    def __init__(
        self, config: RunConfig, num_classes: int, images: np.ndarray, labels: np.ndarray, learning_rate: float
    ) -> None:
        device = runtime.resolve_device(config.device)
        self._backbone = create_backbone(
            config.model.backbone, config.model.embedding_size, config.data.image_size, config.model.dropout
        )
        self._head = create_head(config.head, config.model.embedding_size, num_classes)
        # the trainer's initial weights: with the framework's own, activations may fade, which slows a processor down
        modules = _Modules(self._backbone, self._head)
        modules.initialize(ctx=device)
        checkpoint.from_canonical(modules, draw_parameters(checkpoint.parameter_specs(modules), config.seed))
        self._backbone.hybridize(static_alloc=True)
        self._images = (nd.array(images, device, np.float32) - 127.5) / 128
        self._labels = nd.array(labels, device, np.int64)
        self._backbone(self._images).wait_to_read()  # settles the shapes of the parameters
        parameters = modules.collect_params()
        settings = {"learning_rate": learning_rate, "momentum": 0.9, "wd": 5e-4}
        self._parameters = list(parameters.values())
        self._trainer = gluon.Trainer(parameters, "sgd", settings)

    def step(self) -> None:
        """Forward, backward and update."""
        with autograd.record():
            loss = self._head(self._backbone(self._images), self._labels).loss
        loss.backward()
        self._trainer.step(1)  # the loss is a mean already

    def forward(self) -> None:
        """Embeddings, in evaluation mode."""
        self._backbone(self._images)

    def weights(self) -> list[np.ndarray]:
        """Copies of all trained arrays."""
        return [parameter.data().asnumpy() for parameter in self._parameters if parameter.grad_req != "null"]

    def wait(self) -> None:
        """Wait for the device."""
        nd.waitall()


@contextmanager
def waits(seen: list[str]) -> Iterator[None]:
    """Append to `seen` the name of each call that makes the host wait for the engine, on a CPU or CUDA device."""
    # asscalar, item, bool and float all go through asnumpy
    watched = [(NDArray, "asnumpy"), (NDArray, "wait_to_read"), (nd, "waitall")]
    originals = [getattr(owner, name) for owner, name in watched]

    def counted(name: str, original):
        def call(*arguments, **options):
            seen.append(name)
            return original(*arguments, **options)

        return call

    for (owner, name), original in zip(watched, originals, strict=True):
        setattr(owner, name, counted(name, original))
    try:
        yield
    finally:
        for (owner, name), original in zip(watched, originals, strict=True):
            setattr(owner, name, original)
