"""The heads that SFace is compared with: softmax, normalised softmax, CosFace, ArcFace and SphereFace, in MXNet.

Each is a block `head(embeddings, labels) -> MarginResult` over `class_weight` (C, D), like `SFaceHead`. Its loss is
the mean cross-entropy of its logits, and gradients flow through the margins. Loss and angles are computed in the dtype
of `class_weight`, but at least in float32.
"""

import math
from typing import NamedTuple

from mxnet import gluon, init, nd
from mxnet.ndarray import NDArray

from .sface import check_inputs, normalise


class MarginResult(NamedTuple):
    """The loss and the metrics of a step, (1,), of class_weight's dtype, or float32; all but `loss` detached."""

    loss: NDArray
    target_cosine: NDArray  # mean over i of cos[i, y_i]
    other_cosine: NDArray  # mean over i and j != y_i of cos[i, j]
    accuracy: NDArray  # share of samples to which no other prototype is nearer than their own, by angle


class MarginHead(gluon.Block):
    """What the heads share: prototypes, cosines, cross-entropy, metrics. A subclass defines `logits`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).

    Args of `forward`: embeddings (N, D), raw; labels (N,) int64 or int32, 0..C-1.

    Raises:
        ValueError: shapes do not fit, or a label is out of range (on the CPU; a CUDA device picks the nearest class).

    >>> from mxnet import autograd
    >>> head = CosFaceHead(embedding_size=3, num_classes=3, scale=64.0, margin=0.35)
    >>> head.initialize()
    >>> head.class_weight.set_data(nd.eye(3))
    >>> with autograd.record():
    ...     result = head(nd.eye(1, 3), nd.array([1], dtype="int64"))  # on prototype 0, of class 1
    >>> round(result.loss.asscalar().item(), 2), result.accuracy.asscalar().item()  # 64 (1 + 0.35)
    (86.4, 0.0)
    """

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__()
        with self.name_scope():
            self.class_weight = self.params.get(
                "class_weight", shape=(num_classes, embedding_size), init=init.Normal((2 / num_classes) ** 0.5)
            )

    def forward(self, embeddings: NDArray, labels: NDArray) -> MarginResult:
        class_weight = self.class_weight.data(embeddings.context)
        check_inputs(embeddings, class_weight, labels)
        dtype = "float64" if class_weight.dtype.__name__ == "float64" else "float32"
        embeddings, class_weight = embeddings.astype(dtype, copy=False), class_weight.astype(dtype, copy=False)
        unit_embeddings, _ = normalise(embeddings)
        unit_prototypes, _ = normalise(class_weight)
        cosines = nd.dot(unit_embeddings, unit_prototypes, transpose_b=True).clip(-1, 1)
        is_target = nd.one_hot(labels, len(class_weight), dtype=cosines.dtype)
        loss = _cross_entropy(self.logits(embeddings, cosines, is_target), labels, is_target)

        cosines = cosines.detach()
        target_cosines = nd.pick(cosines, labels)
        others = cosines - 4 * is_target  # no cosine is below -1
        return MarginResult(
            loss=loss,
            target_cosine=nd.mean(target_cosines),
            other_cosine=nd.sum(cosines * (1 - is_target)) / (len(labels) * (len(class_weight) - 1)),
            accuracy=nd.mean(target_cosines >= nd.max(others, axis=1)),
        )

    def logits(self, embeddings: NDArray, cosines: NDArray, is_target: NDArray) -> NDArray:
        """Logits (N, C) from embeddings (N, D), cosines (N, C) and the one-hot targets (N, C), 0 or 1."""
        raise NotImplementedError(f"{type(self).__name__} must define its logits")


class SoftmaxHead(MarginHead):
    """logits = x W' + bias: the plain linear classifier."""

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__(embedding_size, num_classes)
        with self.name_scope():
            self.bias = self.params.get("bias", shape=(num_classes,), init=init.Zero())

    def logits(self, embeddings: NDArray, cosines: NDArray, is_target: NDArray) -> NDArray:
        class_weight, bias = (
            parameter.data(embeddings.context).astype(embeddings.dtype, copy=False)
            for parameter in (self.class_weight, self.bias)
        )
        return nd.dot(embeddings, class_weight, transpose_b=True) + bias.expand_dims(0)


class NormalisedSoftmaxHead(MarginHead):
    """logits = s cos(theta) (NormFace)."""

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale

    def logits(self, embeddings: NDArray, cosines: NDArray, is_target: NDArray) -> NDArray:
        return self.scale * cosines


class CosFaceHead(MarginHead):
    """target logit = s (cos(theta) - m), the others s cos(theta) (CosFace, arXiv:1801.09414; AM-Softmax: s = 30)."""

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0, margin: float = 0.35) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale
        self.margin = margin

    def logits(self, embeddings: NDArray, cosines: NDArray, is_target: NDArray) -> NDArray:
        return self.scale * (cosines - self.margin * is_target)


class ArcFaceHead(MarginHead):
    """target logit = s cos(theta + m), the others s cos(theta) (ArcFace, arXiv:1801.07698); m in radians.

    Where theta + m exceeds pi, the target logit is s (cos(theta) - m sin(m)), which keeps falling with theta.
    """

    def __init__(self, embedding_size: int, num_classes: int, *, scale: float = 64.0, margin: float = 0.5) -> None:
        super().__init__(embedding_size, num_classes)
        self.scale = scale
        self.margin = margin

    def logits(self, embeddings: NDArray, cosines: NDArray, is_target: NDArray) -> NDArray:
        target = nd.sum(cosines * is_target, axis=1, keepdims=True)
        # the floor keeps the gradient of the root finite where an embedding meets its prototype
        sine = nd.sqrt(nd.maximum(1 - target * target, 1e-12))
        with_margin = nd.where(
            target > math.cos(math.pi - self.margin),
            target * math.cos(self.margin) - sine * math.sin(self.margin),
            target - self.margin * math.sin(self.margin),
        )
        return self.scale * (cosines * (1 - is_target) + with_margin * is_target)


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

    def logits(self, embeddings: NDArray, cosines: NDArray, is_target: NDArray) -> NDArray:
        target = nd.sum(cosines * is_target, axis=1, keepdims=True)
        cosine_of_multiple = 8 * target**4 - 8 * target**2 + 1
        k = (self.MARGIN * nd.arccos(target.detach()) / math.pi).floor().clip(0, self.MARGIN - 1)
        psi = (1 - 2 * (k % 2)) * cosine_of_multiple - 2 * k
        annealing = max(5.0, 1000 / (1 + 0.12 * self.step))
        with_margin = (psi + annealing * target) / (1 + annealing)
        return normalise(embeddings)[1] * (cosines * (1 - is_target) + with_margin * is_target)


def _cross_entropy(logits: NDArray, labels: NDArray, is_target: NDArray) -> NDArray:
    """Mean of log(1 + sum over j != y of exp(z_j - z_y)): a small loss keeps the digits that 1 - p would cancel."""
    others = nd.where(is_target, nd.ones_like(logits) * -math.inf, logits)
    largest = nd.max(others.detach(), axis=1, keepdims=True)
    log_sum = nd.log(nd.sum(nd.exp(others - largest), axis=1)) + largest.reshape(-1)
    gap = log_sum - nd.pick(logits, labels)
    return nd.mean(nd.relu(gap) + nd.log1p(nd.exp(-nd.abs(gap))))
