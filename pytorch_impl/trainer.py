"""Backbone, head and optimiser on a device (`common.backend.Trainer`); `common.training.loop.fit` drives it."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.backend import METRICS, check_labels
from common.config import HeadConfig, RunConfig
from common.ranks import Ranks
from common.weights.initialisation import draw_parameters
from pytorch_impl import checkpoint, distributed, runtime
from pytorch_impl.backbones import create_backbone
from pytorch_impl.class_shards import ShardedSFaceHead
from pytorch_impl.distributed import Group
from pytorch_impl.losses import HEADS, MarginHead, SFaceHead, SphereFaceHead
from pytorch_impl.optimizer import create_optimizer, momentum_buffer, set_learning_rate


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
        self.device = distributed.local_device(runtime.resolve_device(config.device))
        self.ranks = distributed.join(self.device)
        self._precision = runtime.PRECISIONS[config.precision]
        self._master = torch.float64 if self._precision == torch.float64 else torch.float32
        runtime.seed_everything(config.seed)
        self.backbone = create_backbone(
            config.model.backbone, config.model.embedding_size, config.data.image_size, config.model.dropout
        )
        self.head = self._create_head()
        self._modules = nn.ModuleDict({"backbone": self.backbone, "head": self.head})
        self._sharded = {"head.class_weight"} if isinstance(self.head, ShardedSFaceHead) else set()
        self._draw_weights()
        self._prepare_modules()
        self._trained_backbone, self._trained_head = self._wrapped_for_training()
        self._optimizer = create_optimizer(
            [self.backbone, self.head], momentum=config.optimiser.momentum, weight_decay=config.optimiser.weight_decay
        )
        self._scaler = self._create_scaler()
        self._step = 0
        self._metrics: dict[str, Tensor] = {}
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    def _create_head(self) -> nn.Module:
        config = self._config
        head = create_head(config.head, config.model.embedding_size, self._num_classes, ranks=self.ranks)
        if isinstance(head, SFaceHead):
            head.compiled = config.compile
        if isinstance(head, MarginHead):
            head.sample_rate = config.head.sample_rate
        return head

    def _draw_weights(self) -> None:
        """The initial weights of all backends, from the seed; each rank draws all and keeps its share."""
        specs = checkpoint.parameter_specs(self._modules)
        for name in self._sharded:
            specs[name] = specs[name]._replace(shape=(self._num_classes, *specs[name].shape[1:]))
        checkpoint.from_canonical(self._modules, self._parts(draw_parameters(specs, self._config.seed)))

    def _prepare_modules(self) -> None:
        """Synchronised BatchNorm, device, precision and memory layout."""
        if self._config.sync_batch_norm and isinstance(self.ranks, Group):
            distributed.synchronise_batch_norm(self.backbone, self.device)
        self._modules.to(self.device, self._master)
        self.backbone.to(memory_format=torch.channels_last)

    def _wrapped_for_training(self) -> tuple[nn.Module, nn.Module]:
        """Backbone and head as a training step calls them: compiled, and with gradients exchanged between ranks."""
        backbone = torch.compile(self.backbone) if self._config.compile else self.backbone
        if not isinstance(self.ranks, Group):
            return backbone, self.head
        return self._data_parallel(backbone), self.head if self._sharded else self._data_parallel(self.head)

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> None:
        check_labels(labels, self._num_classes)
        self._modules.train()
        self.backbone.train(not self._is_frozen())
        if isinstance(self.ranks, Group):
            self._seed_dropout()
        if isinstance(self.head, SphereFaceHead):
            self.head.step = self._step
        self._compute_gradients(images, labels)
        self._update(learning_rate)
        self._remember_if_bad(self._metrics["loss"])
        self._step += 1

    def _compute_gradients(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Add up the gradients of the parts of a batch; the metrics are the parts' means."""
        self._modules.zero_grad(set_to_none=True)
        parts = self._config.optimiser.accumulate
        totals: dict[str, Tensor] = {}
        split = zip(np.split(images, parts), np.split(labels, parts), strict=True)
        for part, (part_images, part_labels) in enumerate(split, 1):
            with self._exchange_gradients(part == parts):
                result = self._trained_head(self._embeddings(part_images), self._to_device(part_labels))
                self._scaler.scale(result.loss / parts).backward()
            for name, value in result._asdict().items():
                if name in METRICS:
                    totals[name] = totals.get(name, 0) + value.detach() / parts
        self._metrics = totals

    def _is_frozen(self) -> bool:
        """Whether the next step trains the head alone."""
        return self._step < self._config.model.freeze_backbone_steps

    def _embeddings(self, images: np.ndarray) -> Tensor:
        """The head's input in training; without a gradient, parameters of the backbone are left alone."""
        if not self._is_frozen():
            return self._forward(images, self._trained_backbone)
        with torch.no_grad():
            return self._forward(images, self.backbone)

    def _update(self, learning_rate: float) -> None:
        set_learning_rate(self._optimizer, learning_rate)
        if self._config.optimiser.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            self._clip_gradients(self._config.optimiser.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def metrics(self) -> dict[str, float]:
        if isinstance(self.ranks, Group) and not self._sharded:  # each rank has the metrics of its share
            mean = self.ranks.sum(torch.stack(list(self._metrics.values()))) / self.ranks.count
            return dict(zip(self._metrics, mean.tolist(), strict=True))
        return {name: value.item() for name, value in self._metrics.items()}

    def first_bad_step(self) -> int | None:
        bad_step = self._first_bad_step
        if isinstance(self.ranks, Group):
            never = 2**62
            bad_step = -self.ranks.maximum(-torch.where(bad_step < 0, never, bad_step))
            bad_step = torch.where(bad_step == never, -1, bad_step)
        step = int(bad_step.item())
        return None if step < 0 else step

    def embed(self, images: np.ndarray) -> np.ndarray:
        self._modules.eval()
        with torch.inference_mode():
            return self._forward(images, self.backbone).float().cpu().numpy()

    def state(self) -> dict[str, np.ndarray]:
        tensors = checkpoint.named_tensors(self._modules) | self._momentum()
        arrays = checkpoint.to_arrays({name: self._whole(name, tensor) for name, tensor in tensors.items()})
        arrays["random.cpu"] = torch.get_rng_state().numpy()
        if self.device.type == "cuda":
            arrays["random.cuda"] = torch.cuda.get_rng_state(self.device).numpy()
        if self._scaler.is_enabled():
            arrays["scaler.scale"] = np.array(self._scaler.get_scale(), np.float64)
            arrays["scaler.growth_tracker"] = np.array(self._scaler.state_dict()["_growth_tracker"], np.int64)
        return arrays

    def prototypes(self) -> np.ndarray:
        name = "head.class_weight"
        return checkpoint.to_arrays({name: self._whole(name, self.head.class_weight)})[name]

    def load_weights(self, state: dict[str, np.ndarray]) -> None:
        kept = ("backbone.", "head.") if any(name.startswith("head.") for name in state) else ("backbone.",)
        weights = {name: array for name, array in state.items() if name.startswith(kept)}
        tensors = {name: t for name, t in checkpoint.named_tensors(self._modules).items() if name.startswith(kept)}
        checkpoint.from_arrays(tensors, self._parts(weights))

    def load_state(self, state: dict[str, np.ndarray], step: int) -> None:
        tensors = checkpoint.named_tensors(self._modules) | self._momentum()
        kept = ("backbone.", "head.", "momentum.")
        arrays = {name: array for name, array in state.items() if name.startswith(kept)}
        checkpoint.from_arrays(tensors, self._parts(arrays))
        if "random.cpu" in state:
            torch.set_rng_state(torch.from_numpy(state["random.cpu"]))
        if "random.cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(torch.from_numpy(state["random.cuda"]), self.device)
        if "scaler.scale" in state and self._scaler.is_enabled():
            saved = {"scale": float(state["scaler.scale"]), "_growth_tracker": int(state["scaler.growth_tracker"])}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **saved})
        self._step = step
        self._first_bad_step.fill_(-1)

    def describe(self) -> dict[str, Any]:
        def count(module: nn.Module) -> int:
            return sum(parameter.numel() for parameter in module.parameters())

        return {
            **runtime.describe(self.device),
            "precision": self._config.precision,
            "ranks": self.ranks.count,
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
        """Remember the first step whose loss is not finite. Stays on the device, so that the host need not wait."""
        is_first = (self._first_bad_step < 0) & ~torch.isfinite(loss)
        self._first_bad_step = torch.where(is_first, self._step + 1, self._first_bad_step)

    def _create_scaler(self) -> torch.amp.GradScaler:
        """The loss scale of float16. With several ranks, all skip a step if one has to."""
        enabled = self._config.precision == "fp16"
        if not (enabled and isinstance(self.ranks, Group)):
            return torch.amp.GradScaler(self.device.type, enabled=enabled)
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # its import takes seconds

        return ShardedGradScaler(self.device.type)

    def _data_parallel(self, module: nn.Module) -> nn.Module:
        on = [self.device.index] if self.device.type == "cuda" else None
        # only rank 0 evaluates and saves, so the other ranks need not have its running statistics
        return DistributedDataParallel(module, device_ids=on, forward_sync_buffers=False)

    @contextlib.contextmanager
    def _exchange_gradients(self, now: bool) -> Iterator[None]:
        """Around a backward pass: if `now`, exchange the gradients that were added up since the last exchange."""
        with contextlib.ExitStack() as stack:
            for module in (self._trained_backbone, self._trained_head):
                if isinstance(module, DistributedDataParallel) and not now:
                    stack.enter_context(module.no_sync())
            yield

    def _clip_gradients(self, largest: float) -> None:
        if not self._sharded or not isinstance(self.ranks, Group):
            nn.utils.clip_grad_norm_(self._modules.parameters(), largest)
            return
        gradients = {name: p.grad for name, p in self._modules.named_parameters() if p.grad is not None}
        shards = [gradients.pop(name) for name in self._sharded]
        of_shards = self.ranks.sum(nn.utils.get_total_norm(shards).square())
        norm = (nn.utils.get_total_norm(list(gradients.values())).square() + of_shards).sqrt()
        nn.utils.clip_grads_with_norm_(self._modules.parameters(), largest, norm)

    def _seed_dropout(self) -> None:
        """Seed each step of each rank by itself, so that no rank has to save a random state."""
        state = np.random.SeedSequence([self._config.seed, self._step, self.ranks.rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def _is_sharded(self, name: str) -> bool:
        return name.removeprefix("momentum.") in self._sharded

    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        """A sharded tensor with the rows of all ranks, on rank 0; the other ranks get their share."""
        if not self._is_sharded(name) or not isinstance(self.ranks, Group):
            return tensor
        whole = self.ranks.joined(tensor, self._num_classes)
        return tensor if whole is None else whole

    def _parts(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """This rank's share of each sharded array, and all other arrays as they are."""
        for name, array in arrays.items():
            if self._is_sharded(name) and array.shape[:1] != (self._num_classes,):
                raise ValueError(f"{name}: expected {self._num_classes} rows, got {array.shape[:1]}")
        if not isinstance(self.ranks, Group):
            return dict(arrays)
        share = self.ranks.share(self._num_classes)
        return {name: array[share] if self._is_sharded(name) else array for name, array in arrays.items()}

    def _momentum(self) -> dict[str, Tensor]:
        trained = [(name, p) for name, p in self._modules.named_parameters() if p.requires_grad]
        return {f"momentum.{name}": momentum_buffer(self._optimizer, parameter) for name, parameter in trained}


def create_head(config: HeadConfig, embedding_size: int, num_classes: int, *, ranks: Ranks | None = None) -> nn.Module:
    """The loss head that a configuration names, with those of its settings that the head takes.

    Among several ranks, the streamed form of SFace has this rank's share of the `num_classes` prototypes.
    """
    kind = HEADS[config.name]
    taken = inspect.signature(kind.__init__).parameters
    settings = {name: value for name, value in vars(config).items() if name in taken and value is not None}
    if isinstance(ranks, Group) and kind is SFaceHead and config.form == "streamed":
        return ShardedSFaceHead(ranks, embedding_size, num_classes, **settings)
    return kind(embedding_size, num_classes, **settings)
