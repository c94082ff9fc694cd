"""The heads that SFace is compared with: softmax, normalised softmax, CosFace, ArcFace and SphereFace, in MXNet.

Each is a block `head(embeddings, labels) -> MarginResult` over `class_weight` (C, D), like `SFaceHead`, and ends in
the mean cross-entropy of its logits. Gradients flow through the margins. This file needs MXNet only and can be copied
alone.
"""

import math
from typing import NamedTuple

from mxnet import gluon, init, nd
from mxnet.ndarray import NDArray

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero


class MarginResult(NamedTuple):
    """The loss and what to log of a step; shape (1,), all but `loss` without gradient."""

    loss: NDArray
    target_cosine: NDArray  # mean over i of cos[i, y_i]
    other_cosine: NDArray  # mean over i and j != y_i of cos[i, j]
    accuracy: NDArray  # share of samples to which no other prototype is nearer, by angle, than their own


class MarginHead(gluon.Block):
    """Shared part: prototypes, cosines, cross-entropy, metrics. A head says what its logits are.

    Args of `forward`: embeddings (N, D), raw; labels (N,) int64, 0..C-1.

    Raises:
        ValueError: shapes do not fit, or a label is out of range (on the CPU; a CUDA device picks the nearest class).
    """

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__()
        with self.name_scope():
            self.class_weight = self.params.get(
                "class_weight", shape=(num_classes, embedding_size), init=init.Normal((2 / num_classes) ** 0.5)
            )

    def forward(self, embeddings: NDArray, labels: NDArray) -> MarginResult:
        class_weight = self.class_weight.data(embeddings.context)
        _check(embeddings, class_weight, labels)
        cosines = nd.dot(_normalise(embeddings), _normalise(class_weight), transpose_b=True).clip(-1, 1)
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
        raise NotImplementedError(f"{type(self).__name__} must say what its logits are")


class SoftmaxHead(MarginHead):
    """logits = x W' + bias: the plain linear classifier."""

    def __init__(self, embedding_size: int, num_classes: int) -> None:
        super().__init__(embedding_size, num_classes)
        with self.name_scope():
            self.bias = self.params.get("bias", shape=(num_classes,), init=init.Zero())

    def logits(self, embeddings: NDArray, cosines: NDArray, is_target: NDArray) -> NDArray:
        class_weight, bias = self.class_weight.data(embeddings.context), self.bias.data(embeddings.context)
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
        norms = nd.sqrt(nd.sum(embeddings * embeddings, axis=1, keepdims=True))
        return norms * (cosines * (1 - is_target) + with_margin * is_target)


def _cross_entropy(logits: NDArray, labels: NDArray, is_target: NDArray) -> NDArray:
    """Mean of log(1 + sum over j != y of exp(z_j - z_y)): a small loss keeps the digits that 1 - p would cancel."""
    others = nd.where(is_target, nd.ones_like(logits) * -math.inf, logits)
    largest = nd.max(others.detach(), axis=1, keepdims=True)
    log_sum = nd.log(nd.sum(nd.exp(others - largest), axis=1)) + largest.reshape(-1)
    gap = log_sum - nd.pick(logits, labels)
    return nd.mean(nd.relu(gap) + nd.log1p(nd.exp(-nd.abs(gap))))


def _normalise(vectors: NDArray) -> NDArray:
    # the floor under the root, not on it: the root has no gradient at 0
    return vectors / nd.sqrt(nd.maximum(nd.sum(vectors * vectors, axis=1, keepdims=True), NORM_FLOOR**2))


def _check(embeddings: NDArray, class_weight: NDArray, labels: NDArray) -> None:
    num_classes = len(class_weight)
    if embeddings.ndim != 2 or embeddings.shape[1] != class_weight.shape[1]:
        raise ValueError(
            f"embeddings: expected (N, {class_weight.shape[1]}) as in class_weight, got {embeddings.shape}"
        )
    if embeddings.dtype != class_weight.dtype:
        raise ValueError(
            "expected embeddings and class_weight of the same dtype, "
            f"got {embeddings.dtype.__name__} and {class_weight.dtype.__name__}"
        )
    if len(embeddings) == 0 or num_classes < 2:
        raise ValueError(f"expected at least 1 sample and 2 classes, got {len(embeddings)} and {num_classes}")
    if labels.shape != embeddings.shape[:1] or labels.dtype.__name__ != "int64":
        raise ValueError(f"labels: expected int64 ({len(embeddings)},), got {labels.dtype.__name__} {labels.shape}")
    if labels.context.device_type == "cpu":
        values = labels.asnumpy()
        bad = ((values < 0) | (values >= num_classes)).nonzero()[0]
        if len(bad):
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {values[bad[0]]} at row {bad[0]}")
