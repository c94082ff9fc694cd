"""PyTorch's own training loop, which `python -m benchmarks` compares the trainer with, and a count of waits."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.config import RunConfig
from common.weights.initialisation import draw_parameters
from pytorch_impl import checkpoint, runtime
from pytorch_impl.backbones import create_backbone
from pytorch_impl.trainer import create_head


class Bare:
    """Backbone, head and PyTorch's SGD on one normalised batch on the device.

    Memory layout, threads and allocator settings are the trainer's, so the ratio of the two is the cost of the
    trainer's own work.

    Args:
        config: checked.
        num_classes: identities.
        images: (N, 3, S, S) uint8.
        labels: (N,) int64.
        learning_rate: of all steps.
    """

    def __init__(
        self, config: RunConfig, num_classes: int, images: np.ndarray, labels: np.ndarray, learning_rate: float
    ) -> None:
        self._device = runtime.resolve_device(config.device)
        self._backbone = create_backbone(
            config.model.backbone, config.model.embedding_size, config.data.image_size, config.model.dropout
        )
        self._head = create_head(config.head, config.model.embedding_size, num_classes).to(self._device)
        # the trainer's initial weights: with the framework's own, activations may fade, which slows a processor down
        modules = nn.ModuleDict({"backbone": self._backbone, "head": self._head})
        checkpoint.from_canonical(modules, draw_parameters(checkpoint.parameter_specs(modules), config.seed))
        self._backbone.to(self._device, memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(modules.parameters(), lr=learning_rate, momentum=0.9, weight_decay=5e-4)
        pixels = (torch.from_numpy(images).float() - 127.5) / 128
        self._images = pixels.to(self._device, memory_format=torch.channels_last)
        self._labels = torch.from_numpy(labels).to(self._device)

    def step(self) -> None:
        """Forward, backward and update."""
        self._backbone.train()
        self._optimizer.zero_grad()
        self._head(self._backbone(self._images), self._labels).loss.backward()
        self._optimizer.step()

    def forward(self) -> None:
        """Embeddings, in evaluation mode."""
        self._backbone.eval()
        with torch.inference_mode():
            self._backbone(self._images)

    def weights(self) -> list[np.ndarray]:
        """Copies of all trained arrays."""
        groups = self._optimizer.param_groups
        return [p.detach().cpu().numpy().copy() for group in groups for p in group["params"] if p.requires_grad]

    def wait(self) -> None:
        """Wait for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@contextmanager
def waits(seen: list[str]) -> Iterator[None]:
    """Append to `seen` the name of each call that makes the host wait for a CUDA device; a CPU run counts them too.

    These are reading a value, a copy to the host, and an operator whose result's size depends on values.
    """
    copies = ("cpu", "numpy", "tolist")
    originals = {name: getattr(torch.Tensor, name) for name in copies}

    def watched(name: str):
        def call(*arguments, **options):
            seen.append(name)
            return originals[name](*arguments, **options)

        return call

    for name in copies:
        setattr(torch.Tensor, name, watched(name))
    try:
        with _Watch(seen):
            yield
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)


class _Watch(TorchDispatchMode):
    """Sees the operators behind all Python calls: `item`, `bool(...)`, an index by a mask."""

    _WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2")

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        name = operator.overloadpacket.__name__
        if name in self._WAITING:
            self._seen.append(name)
        if name in ("index", "index_put", "index_put_") and any(_is_mask(index) for index in arguments[1]):
            self._seen.append("index by a mask")
        return operator(*arguments, **(options or {}))


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
