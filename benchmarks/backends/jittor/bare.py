"""Jittor's own training loop, which `python -m benchmarks` compares the trainer with, and a count of waits."""

from collections.abc import Iterator
from contextlib import contextmanager

import jittor as jt
import numpy as np

from common.config import RunConfig
from common.weights.initialisation import draw_parameters
from jittor_impl import checkpoint, runtime
from jittor_impl.backbones import create_backbone
from jittor_impl.trainer import _Modules, create_head


class Bare:
    """Backbone, head and Jittor's SGD on one normalised batch on the device.

    Threads and compiler flags are the trainer's, so the ratio of the two is the cost of the trainer's own work.

    The arguments are those of `benchmarks.backends.pytorch.bare.Bare`.
    """

    def __init__(
        self, config: RunConfig, num_classes: int, images: np.ndarray, labels: np.ndarray, learning_rate: float
    ) -> None:
        runtime.resolve_device(config.device)
        self._backbone = create_backbone(
            config.model.backbone, config.model.embedding_size, config.data.image_size, config.model.dropout
        )
        self._head = create_head(config.head, config.model.embedding_size, num_classes)
        # the trainer's initial weights: with the framework's own, activations may fade, which slows a processor down
        modules = _Modules(self._backbone, self._head)
        checkpoint.from_canonical(modules, draw_parameters(checkpoint.parameter_specs(modules), config.seed))
        parameters = [p for p in modules.parameters() if not p.is_stop_grad()]  # not running statistics
        self._optimizer = jt.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=5e-4)
        self._images = (jt.array(images).float32() - 127.5) / 128
        self._labels = jt.array(labels, "int64")

    def step(self) -> None:
        """Forward, backward and update."""
        self._backbone.train()
        self._optimizer.step(self._head(self._backbone(self._images), self._labels).loss)
        jt.sync_all()  # runs what was noted down; Jittor itself does so only when a value is asked for

    def forward(self) -> None:
        """Embeddings, in evaluation mode."""
        self._backbone.eval()
        with jt.no_grad():
            self._backbone(self._images).sync()

    def weights(self) -> list[np.ndarray]:
        """Copies of all trained arrays."""
        return [parameter.numpy().copy() for parameter in self._optimizer.param_groups[0]["params"]]

    def wait(self) -> None:
        """Wait for the device."""
        jt.sync_all(True)


@contextmanager
def waits(seen: list[str]) -> Iterator[None]:
    """Append to `seen` the name of each call that makes the host wait for a CUDA device; a CPU run counts them too."""
    values = ("numpy", "fetch_sync", "item", "tolist", "data")  # bool, int and float go through item
    originals = {name: jt.Var.__dict__[name] for name in values}
    sync_all, sync = jt.sync_all, jt.sync

    def watched(name: str):
        if name == "data":
            return property(lambda var: (seen.append(name), originals[name].__get__(var))[1])
        return lambda var, *arguments: (seen.append(name), originals[name](var, *arguments))[1]

    def device_sync(name: str, original, position: int):
        def call(*arguments, device_sync: bool = False, **options):
            if device_sync or any(arguments[position : position + 1]):
                seen.append(name)
            return original(*arguments, **options, **({"device_sync": True} if device_sync else {}))

        return call

    for name in values:
        setattr(jt.Var, name, watched(name))
    jt.sync_all, jt.sync = device_sync("sync_all", sync_all, 0), device_sync("sync", sync, 1)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(jt.Var, name, original)
        jt.sync_all, jt.sync = sync_all, sync
