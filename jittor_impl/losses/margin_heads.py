"""The heads that SFace is compared with: softmax, normalised softmax, CosFace, ArcFace and SphereFace, in Jittor.

Each is a module `head(embeddings, labels) -> MarginResult` over `class_weight` (C, D), like `SFaceHead`. Its loss is
the mean cross-entropy of its logits, and gradients flow through the margins. Loss and angles are computed in the dtype
of `class_weight`, but at least in float32, also under mixed precision.
"""

import math
from typing import NamedTuple

import jittor as jt
from jittor import Var, nn

from .sface import check_inputs, mean, normalise, number


class MarginResult(NamedTuple):
    """The loss and the metrics of a step: scalars of class_weight's dtype, or float32; all but `loss` detached."""

    loss: Var
    target_cosine: Var  # mean over i of cos[i, y_i]
    other_cosine: Var  # mean over i and j != y_i of cos[i, j]
    accuracy: Var  # share of samples to which no other prototype is nearer than their own, by angle


class MarginHead(nn.Module):
    """What the heads share: prototypes, cosines, cross-entropy, metrics. A subclass defines `logits`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).

    Args of `execute`: embeddings (N, D), raw; labels (N,) int32 or int64, 0..C-1.

    Raises:
        ValueError: shapes do not fit, or a label is out of range (on the CPU; on a CUDA device such a sample has no
            target).

    >>> head = CosFaceHead(embedding_size=3, num_classes=3, scale=64.0, margin=0.35)
    >>> head.class_weight = jt.init.eye((3, 3))
    >>> result = head(jt.init.eye((1, 3)), jt.array([1]))  # on prototype 0, of class 1
    >>> round(result.loss.item(), 2), result.accuracy.item()  # 64 (1 + 0.35)
    (86.4, 0.0)
    """

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__()
        self.class_weight = jt.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5

    def execute(self, embeddings: Var, labels: Var) -> MarginResult:
        check_inputs(embeddings, self.class_weight, labels)
        batch_size, num_classes = embeddings.shape[0], self.class_weight.shape[0]
        dtype = "float64" if self.class_weight.dtype == "float64" else "float32"
        with jt.flag_scope(amp_reg=int(dtype == "float32")):  # bit 0: mixed precision stays out
            embeddings, class_weight = embeddings.cast(dtype), self.class_weight.cast(dtype)
            unit_embeddings, _ = normalise(embeddings)
            unit_prototypes, _ = normalise(class_weight)
            cosines = nn.matmul_transpose(unit_embeddings, unit_prototypes).clamp(-1, 1)
            is_target = labels.unsqueeze(1) == jt.arange(num_classes)
            loss = _cross_entropy(self.logits(embeddings, cosines, is_target), is_target)

        cosines = cosines.detach()
        target_cosines = _target(cosines, is_target)
        nearest_other = (cosines - 4 * is_target.cast(cosines.dtype)).max(1)  # a target is below all others
        others = number(batch_size * (num_classes - 1), cosines)
        return MarginResult(
            loss=loss,
            target_cosine=target_cosines.mean(),
            other_cosine=(cosines.sum() - target_cosines.sum()) / others,
            accuracy=(target_cosines >= nearest_other).cast(cosines.dtype).mean(),
        )

    def logits(self, embeddings: Var, cosines: Var, is_target: Var) -> Var:
        """Logits (N, C) from embeddings (N, D), cosines (N, C) and the one-hot mask of the targets (N, C), bool."""
        raise NotImplementedError(f"{type(self).__name__} must define its logits")


class SoftmaxHead(MarginHead):
    """logits = x W' + bias: the plain linear classifier."""

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__(embedding_size, num_classes)
        self.bias = jt.zeros(num_classes)

    def logits(self, embeddings: Var, cosines: Var, is_target: Var) -> Var:
        return nn.linear(embeddings, self.class_weight.cast(embeddings.dtype), self.bias.cast(embeddings.dtype))


class NormalisedSoftmaxHead(MarginHead):
    """logits = s cos(theta) (NormFace)."""

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale

    def logits(self, embeddings: Var, cosines: Var, is_target: Var) -> Var:
        return number(self.scale, cosines) * cosines


class CosFaceHead(MarginHead):
    """target logit = s (cos(theta) - m), the others s cos(theta) (CosFace, arXiv:1801.09414; AM-Softmax: s = 30)."""

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0, margin: float = 0.35) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale
        self.margin = margin

    def logits(self, embeddings: Var, cosines: Var, is_target: Var) -> Var:
        margins = number(self.margin, cosines) * is_target.cast(cosines.dtype)
        return number(self.scale, cosines) * (cosines - margins)


class ArcFaceHead(MarginHead):
    """target logit = s cos(theta + m), the others s cos(theta) (ArcFace, arXiv:1801.07698); m in radians.

    Where theta + m exceeds pi, the target logit is s (cos(theta) - m sin(m)), which keeps falling with theta.
    """

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale
        self.margin = margin

    def logits(self, embeddings: Var, cosines: Var, is_target: Var) -> Var:
        target = _target(cosines, is_target)
        limit, cos_margin, sin_margin, linear = (
            number(value, cosines)
            for value in (
                math.cos(math.pi - self.margin),
                math.cos(self.margin),
                math.sin(self.margin),
                self.margin * math.sin(self.margin),
            )
        )
        # the floor keeps the gradient of the root finite where an embedding meets its prototype
        sine = jt.sqrt(jt.maximum(1 - target * target, number(1e-12, target)))
        with_margin = jt.ternary(target > limit, target * cos_margin - sine * sin_margin, target - linear)
        return number(self.scale, cosines) * _with_target(cosines, is_target, with_margin)


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

    def logits(self, embeddings: Var, cosines: Var, is_target: Var) -> Var:
        target = _target(cosines, is_target)
        square = target * target
        cosine_of_multiple = 8 * square * square - 8 * square + 1
        k = jt.floor(jt.arccos(target.detach()) * number(self.MARGIN / math.pi, target))
        k = jt.minimum(k, number(self.MARGIN - 1, k))
        psi = (1 - 2 * (k % 2)) * cosine_of_multiple - 2 * k
        annealing = max(5.0, 1000 / (1 + 0.12 * self.step))
        share = 1 / (1 + annealing)
        with_margin = number(share, psi) * psi + number(annealing * share, target) * target
        return normalise(embeddings)[1] * _with_target(cosines, is_target, with_margin)


def _cross_entropy(logits: Var, is_target: Var) -> Var:
    # jittor's own has gradients rounded to float32, by its means
    logits = logits.stop_fuse()  # computed twice, huge logits would round to another value than their maximum
    shifted = logits - logits.max(1, keepdims=True).detach()
    return mean(jt.log(jt.exp(shifted).sum(1)) - _target(shifted, is_target))


def _target(values: Var, is_target: Var) -> Var:
    """values[i, y_i], (N,)."""
    return (values * is_target.cast(values.dtype)).sum(1)


def _with_target(values: Var, is_target: Var, targets: Var) -> Var:
    """`values` (N, C) with `targets` (N,) at [i, y_i]."""
    return jt.ternary(is_target, targets.broadcast(values, [1]), values)
