"""The heads that SFace is compared with: softmax, normalised softmax, CosFace, ArcFace and SphereFace, in PyTorch.

Each is a module `head(embeddings, labels) -> MarginResult` over `class_weight` (C, D), like `SFaceHead`. Its loss is
the mean cross-entropy of its logits, and gradients flow through the margins. Loss and angles are computed in the dtype
of `class_weight`, but at least in float32, also under autocast.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sface import check_inputs, normalise, product


class MarginResult(NamedTuple):
    """The loss and the metrics of a step: scalars of class_weight's dtype, or float32; all but `loss` detached."""

    loss: Tensor
    target_cosine: Tensor  # mean over i of cos[i, y_i]
    other_cosine: Tensor  # mean over i and j != y_i of cos[i, j]
    accuracy: Tensor  # share of samples to which no other prototype is nearer than their own, by angle


class MarginHead(nn.Module):
    """What the heads share: prototypes, cosines, cross-entropy, metrics. A subclass defines `logits`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).

    Args of `forward`: embeddings (N, D), raw; labels (N,) int64 or int32, 0..C-1.

    With `sample_rate` below 1 (Partial FC, arXiv:2203.15565), a training step sees this share of the classes: those of
    its batch and others drawn at random. A head whose logits come from the cosines alone saves nearly as much time.

    Raises:
        ValueError: shapes do not fit, or a label is out of range (on the CPU; a CUDA device fails in its indexing).

    >>> head = CosFaceHead(embedding_size=3, num_classes=3, scale=64.0, margin=0.35)
    >>> head.class_weight.data = torch.eye(3)
    >>> result = head(torch.eye(3)[:1], torch.tensor([1]))  # on prototype 0, of class 1
    >>> round(result.loss.item(), 2), result.accuracy.item()  # 64 (1 + 0.35)
    (86.4, 0.0)
    """

    sample_rate = 1.0

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__()
        self.class_weight = nn.Parameter(torch.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5)

    def forward(self, embeddings: Tensor, labels: Tensor) -> MarginResult:
        check_inputs(embeddings, self.class_weight, labels)
        labels = labels.long()
        class_weight = self.class_weight.to(torch.promote_types(self.class_weight.dtype, torch.float32))
        if self.training and self.sample_rate < 1:
            class_weight, labels = sampled(class_weight, labels, self.sample_rate)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(class_weight.dtype)
            unit_embeddings, _ = normalise(embeddings)
            unit_prototypes, _ = normalise(class_weight)
            cosines = product(unit_embeddings, unit_prototypes).clamp(-1, 1)
            is_target = labels[:, None] == torch.arange(len(class_weight), device=labels.device)
            loss = F.cross_entropy(self.logits(embeddings, cosines, is_target), labels)

        cosines = cosines.detach()
        target_cosines = _targets(cosines, is_target)
        nearest_other = cosines.masked_fill(is_target, -torch.inf).amax(1)
        return MarginResult(
            loss=loss,
            target_cosine=target_cosines.mean(),
            other_cosine=cosines.masked_fill(is_target, 0).sum() / (cosines.numel() - len(labels)),
            accuracy=(target_cosines >= nearest_other).to(cosines.dtype).mean(),
        )

    def logits(self, embeddings: Tensor, cosines: Tensor, is_target: Tensor) -> Tensor:
        """Logits (N, C) from embeddings (N, D), cosines (N, C) and the one-hot mask of the targets (N, C), bool."""
        raise NotImplementedError(f"{type(self).__name__} must define its logits")


class SoftmaxHead(MarginHead):
    """logits = x W' + bias: the plain linear classifier."""

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__(embedding_size, num_classes)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def logits(self, embeddings: Tensor, cosines: Tensor, is_target: Tensor) -> Tensor:
        return F.linear(embeddings, self.class_weight.to(embeddings.dtype), self.bias.to(embeddings.dtype))


class NormalisedSoftmaxHead(MarginHead):
    """logits = s cos(theta) (NormFace)."""

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale

    def logits(self, embeddings: Tensor, cosines: Tensor, is_target: Tensor) -> Tensor:
        return self.scale * cosines


class CosFaceHead(MarginHead):
    """target logit = s (cos(theta) - m), the others s cos(theta) (CosFace, arXiv:1801.09414; AM-Softmax: s = 30)."""

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0, margin: float = 0.35) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale
        self.margin = margin

    def logits(self, embeddings: Tensor, cosines: Tensor, is_target: Tensor) -> Tensor:
        return self.scale * torch.where(is_target, cosines - self.margin, cosines)


class ArcFaceHead(MarginHead):
    """target logit = s cos(theta + m), the others s cos(theta) (ArcFace, arXiv:1801.07698); m in radians.

    Where theta + m exceeds pi, the target logit is s (cos(theta) - m sin(m)), which keeps falling with theta.
    """

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale
        self.margin = margin

    def logits(self, embeddings: Tensor, cosines: Tensor, is_target: Tensor) -> Tensor:
        target = _targets(cosines, is_target)
        # the floor keeps the gradient of the root finite where an embedding meets its prototype
        sine = (1 - target**2).clamp_min(1e-12).sqrt()
        with_margin = torch.where(
            target > math.cos(math.pi - self.margin),
            target * math.cos(self.margin) - sine * math.sin(self.margin),
            target - self.margin * math.sin(self.margin),
        )
        return self.scale * torch.where(is_target, with_margin[:, None], cosines)


class SphereFaceHead(MarginHead):
    """Annealed SphereFace with m = 4 (arXiv:1704.08063).

    target logit = ||x|| (psi(theta) + lambda cos(theta)) / (1 + lambda), the others ||x|| cos(theta), where
    psi(theta) = (-1)^k cos(4 theta) - 2k for theta in [k pi/4, (k+1) pi/4], lambda = max(5, 1000 / (1 + 0.12 step)).

    `step` is the optimiser step from 0; whoever trains sets it before each step, also after a resume.
    """

    MARGIN = 4

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__(embedding_size, num_classes)
        self.step = 0

    def logits(self, embeddings: Tensor, cosines: Tensor, is_target: Tensor) -> Tensor:
        target = _targets(cosines, is_target)
        cosine_of_multiple = 8 * target**4 - 8 * target**2 + 1
        k = (self.MARGIN * torch.acos(target.detach()) / math.pi).floor().clamp(max=self.MARGIN - 1)
        psi = (1 - 2 * (k % 2)) * cosine_of_multiple - 2 * k
        annealing = max(5.0, 1000 / (1 + 0.12 * self.step))
        with_margin = (psi + annealing * target) / (1 + annealing)
        return normalise(embeddings)[1] * torch.where(is_target, with_margin[:, None], cosines)


def sampled(class_weight: Tensor, labels: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Rows of class_weight, `rate` of them: those of the batch's classes and others at random; and labels in these."""
    count = min(len(class_weight), max(len(labels), round(rate * len(class_weight))))
    order = torch.rand(len(class_weight), device=labels.device)
    order[labels] = 2  # before all others
    classes = order.topk(count).indices.sort().values
    return class_weight[classes], torch.searchsorted(classes, labels)


def _targets(cosines: Tensor, is_target: Tensor) -> Tensor:
    """The value (N,) at the target of each row; `cosines[is_target]` would make the host wait for the device."""
    return cosines.masked_fill(~is_target, 0).sum(1)
