"""Backbone, head and optimiser on a device: what `common.training.fit` drives (`common.trainer.Trainer`)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.config import HeadConfig, RunConfig
from common.initialisation import draw_parameters
from common.row_sparse import RowSparseSGD
from pytorch_impl import checkpoint, runtime
from pytorch_impl.backbones import create_backbone
from pytorch_impl.margin_losses import ArcFaceHead, CosFaceHead, NormalisedSoftmaxHead, SoftmaxHead, SphereFaceHead
from pytorch_impl.optimizer import create_optimizer, momentum_buffer, set_learning_rate
from pytorch_impl.sface_loss import SFaceHead


class Trainer:
    """See `common.trainer.Trainer` for the contract of each method.

    Args:
        config: checked.
        num_classes: identities of the training set.

    Raises:
        ValueError: no such device or backbone, or a row-sparse update on a CUDA device.
    """

    def __init__(self, config: RunConfig, num_classes: int) -> None:
        self.device = runtime.resolve_device(config.device)
        self._config = config
        self._num_classes = num_classes
        runtime.seed_everything(config.seed)
        backbone = create_backbone(
            config.model.backbone, config.model.embedding_size, config.data.image_size, config.model.dropout
        )
        head = create_head(config.head, config.model.embedding_size, num_classes)
        if isinstance(head, SFaceHead):
            head.compiled = config.compile
        self._modules = nn.ModuleDict({"backbone": backbone, "head": head})
        checkpoint.from_canonical(
            self._modules, draw_parameters(checkpoint.parameter_specs(self._modules), config.seed)
        )
        self._precision = runtime.PRECISIONS[config.precision]
        self._master = torch.float64 if self._precision == torch.float64 else torch.float32
        self._modules.to(self.device, self._master)
        backbone.to(memory_format=torch.channels_last)
        self.backbone, self.head = backbone, head
        self._trained_backbone = torch.compile(backbone) if config.compile else backbone
        rule = {"momentum": config.optimiser.momentum, "weight_decay": config.optimiser.weight_decay}
        self._row_sparse = RowSparseSGD(num_classes, **rule) if config.optimiser.row_sparse else None
        if self._row_sparse and self.device.type != "cpu":
            raise ValueError(f"optimiser.row_sparse: expected false on {self.device}, got true; it is for the CPU")
        self._optimizer = create_optimizer([backbone] if self._row_sparse else [backbone, head], **rule)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self._step = 0
        self._metrics: dict[str, Tensor] = {}
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        self._check_labels(labels)
        self._modules.train()
        if isinstance(self.head, SphereFaceHead):
            self.head.step = self._step
        set_learning_rate(self._optimizer, learning_rate)
        self._modules.zero_grad(set_to_none=True)

        parts = self._config.optimiser.accumulate
        totals: dict[str, Tensor] = {}
        for part_images, part_labels in zip(np.split(images, parts), np.split(labels, parts), strict=True):
            result = self.head(self._forward(part_images, self._trained_backbone), self._to_device(part_labels))
            self._scaler.scale(result.loss / parts).backward()
            for name, value in result._asdict().items():
                totals[name] = totals.get(name, 0) + value.detach() / parts

        if self._config.optimiser.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._modules.parameters(), self._config.optimiser.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._row_sparse:
            self._row_sparse.step(*self._prototypes(), self.head.class_weight.grad.numpy(), learning_rate)
        self._metrics = totals
        self._remember_if_bad(totals["loss"])
        self._step += 1

    def metrics(self) -> dict[str, float]:
        return {name: value.item() for name, value in self._metrics.items()}

    def first_bad_step(self) -> int | None:
        step = int(self._first_bad_step.item())
        return None if step < 0 else step

    def embed(self, images: np.ndarray) -> np.ndarray:
        self._modules.eval()
        with torch.inference_mode():
            return self._forward(images, self.backbone).float().cpu().numpy()

    def state(self) -> dict[str, np.ndarray]:
        if self._row_sparse:
            self._row_sparse.catch_up(*self._prototypes())
        arrays = checkpoint.to_canonical(self._modules) | checkpoint.to_arrays(self._momentum())
        arrays["random.cpu"] = torch.get_rng_state().numpy()
        if self.device.type == "cuda":
            arrays["random.cuda"] = torch.cuda.get_rng_state(self.device).numpy()
        if self._scaler.is_enabled():
            arrays["scaler.scale"] = np.float64(self._scaler.get_scale())
            arrays["scaler.growth_tracker"] = np.int64(self._scaler.state_dict()["_growth_tracker"])
        return arrays

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        weights = {name: array for name, array in state.items() if name.startswith(("backbone.", "head."))}
        checkpoint.from_canonical(self._modules, weights)
        self._forget_rest()

    def load_state(self, state: dict[str, np.ndarray], step: int) -> None:
        tensors = checkpoint.named_tensors(self._modules) | self._momentum()
        kept = ("backbone.", "head.", "momentum.")
        checkpoint.from_arrays(tensors, {name: array for name, array in state.items() if name.startswith(kept)})
        if "random.cpu" in state:
            torch.set_rng_state(torch.from_numpy(state["random.cpu"]))
        if "random.cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(torch.from_numpy(state["random.cuda"]), self.device)
        if "scaler.scale" in state and self._scaler.is_enabled():
            saved = {"scale": float(state["scaler.scale"]), "_growth_tracker": int(state["scaler.growth_tracker"])}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **saved})
        self._forget_rest()
        self._step = step
        self._first_bad_step.fill_(-1)

    def describe(self) -> dict[str, Any]:
        def count(module: nn.Module) -> int:
            return sum(parameter.numel() for parameter in module.parameters())

        return {
            **runtime.describe(self.device),
            "precision": self._config.precision,
            "backbone_parameters": count(self.backbone),
            "head_parameters": count(self.head),
        }

    def _forward(self, images: np.ndarray, backbone: nn.Module) -> Tensor:
        x = self._to_device(images).to(memory_format=torch.channels_last)
        x = (x.to(self._master) - 127.5) / 128
        with torch.autocast(self.device.type, dtype=self._precision, enabled=self._precision != self._master):
            return backbone(x)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _remember_if_bad(self, loss: Tensor) -> None:
        """Without looking at the value: that would make the host wait for the device."""
        is_first = (self._first_bad_step < 0) & ~torch.isfinite(loss)
        self._first_bad_step = torch.where(is_first, self._step + 1, self._first_bad_step)

    def _prototypes(self) -> tuple[np.ndarray, np.ndarray]:
        """The memory of the prototypes and of their momentum."""
        weight = self.head.class_weight
        return weight.detach().numpy(), momentum_buffer(self._optimizer, weight).numpy()

    def _forget_rest(self) -> None:
        if self._row_sparse:
            self._row_sparse.forget()

    def _momentum(self) -> dict[str, Tensor]:
        trained = [(name, p) for name, p in self._modules.named_parameters() if p.requires_grad]
        return {f"momentum.{name}": momentum_buffer(self._optimizer, parameter) for name, parameter in trained}

    def _check_labels(self, labels: np.ndarray) -> None:
        bad = np.flatnonzero((labels < 0) | (labels >= self._num_classes))
        if len(bad):
            row = bad[0]
            raise ValueError(f"labels: expected 0..{self._num_classes - 1}, got {labels[row]} at row {row}")


def create_head(config: HeadConfig, embedding_size: int, num_classes: int) -> nn.Module:
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
