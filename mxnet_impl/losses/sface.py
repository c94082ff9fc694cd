"""SFace: sigmoid-constrained hypersphere loss (Zhong et al., IEEE TIP 2021, arXiv:2205.12010), in MXNet.

For embeddings x (N, D), prototypes w (C, D) and labels y (N,), with x^ = x / ||x|| and w^ = w / ||w||:

    cos[i,j] = x^_i . w^_j                       theta[i,j] = arccos(cos[i,j])
    r_intra[i]   = s / (1 + exp(-k (theta[i,y_i] - a)))       pulls a sample to its prototype until the angle is below a
    r_inter[i,j] = s / (1 + exp( k (theta[i,j]   - b)))       pushes it from the others until the angle is above b
    loss = mean_i( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )

Both r are constants for the gradient: they re-scale it and are not differentiated. So finite differences of the loss do
not give its gradient, and negative losses are normal.

The loss has no normaliser over classes. So there are two forms with the same results: "plain" reads like the equations,
uses autograd and holds (N, C) matrices; "streamed" (`streamed.py`) goes over blocks of classes and holds none.

The folder of this file can be copied into any package. This file alone can be copied too, for form "plain"; it needs
MXNet only.
"""

import math
from typing import Literal, NamedTuple

from mxnet import gluon, init, nd
from mxnet.ndarray import NDArray

NORM_FLOOR = 1e-12  # a vector with a smaller norm is divided by this

Form = Literal["plain", "streamed"]

_MACHINE_EPSILON = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


class SFaceResult(NamedTuple):
    """The loss and the metrics of a step: shape (1,), the dtype of class_weight, all but `loss` without gradient."""

    loss: NDArray
    intra_loss: NDArray
    inter_loss: NDArray
    target_cosine: NDArray  # mean over i of cos[i, y_i]
    other_cosine: NDArray  # mean over i and j != y_i of cos[i, j]
    accuracy: NDArray  # share of samples to which no other prototype is nearer than their own


class Rescaling(NamedTuple):
    """The five numbers of the paper, and the two weights r that they define."""

    scale: float
    intra_slope: float
    inter_slope: float
    intra_center: float
    inter_center: float

    def pull(self, theta: NDArray) -> NDArray:
        """r_intra of angles of any shape, radians: near 0 below `intra_center`, near `scale` above it."""
        return self.scale * nd.sigmoid(self.intra_slope * (theta - self.intra_center))

    def push(self, theta: NDArray) -> NDArray:
        """r_inter of angles of any shape, radians: near `scale` below `inter_center`, near 0 above it."""
        return self.scale * nd.sigmoid(-self.inter_slope * (theta - self.inter_center))

    def least_cosine(self, epsilon: float) -> float:
        """The cosine below which r_inter < scale * epsilon; -1 if there is none."""
        if epsilon == 0 or self.inter_slope <= 0:
            return -1.0
        angle = self.inter_center + math.log(1 / epsilon - 1) / self.inter_slope
        return math.cos(min(max(angle, 0.0), math.pi))


def sface_loss(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    *,
    scale: float = 64.0,
    intra_slope: float = 80.0,
    inter_slope: float = 80.0,
    intra_center: float = 0.87,
    inter_center: float = 1.2,
    form: Form = "streamed",
    block_size: int | None = None,
    epsilon: float | None = None,
) -> SFaceResult:
    """SFace loss, under `autograd.record()` differentiable once with respect to embeddings and class_weight.

    Equivalent: `(-r_intra * target_cosines).mean() + (r_inter * cosines).sum(1).mean()`, r_inter 0 at the targets.

    Args:
        embeddings: raw backbone output, not normalised, (N, D).
        class_weight: one prototype a class, not normalised, (C, D); of the same dtype.
        labels: class of each sample, 0..C-1, int64, (N,).
        scale: s, the largest weight of a sample's pull or push.
        intra_slope: k of r_intra, per radian.
        inter_slope: k of r_inter, per radian.
        intra_center: a, the angle at which the pull is half of s, radians.
        inter_center: b, the angle at which the push is half of s, radians.
        form: "plain" or "streamed". Both give the same results, except for the pushes that epsilon leaves out.
        block_size: classes in a block of the streamed form, which needs O(N * block_size) memory beside the gradients.
            None: 2048, so that a block stays in a processor's cache; on a CUDA device enough for 2**24 entries.
        epsilon: on the CPU the streamed form leaves out pushes with r_inter < scale * epsilon. 0: none. None: the
            machine epsilon of the dtype, so that float32 results do not move.

    A push that is left out changes inter_loss by less than scale * epsilon / N, the gradient of its embedding x by less
    than scale * epsilon / (N ||x||), and that of its prototype w by less than scale * epsilon / (N ||w||).

    Raises:
        ValueError: shapes do not fit, epsilon is outside [0, 1), the form is unknown, or a label is out of range.
            Labels are checked on the CPU only; on a CUDA device the check would make the host wait at every step, and
            a wrong label picks the nearest class.

    >>> from mxnet import autograd
    >>> prototypes = nd.eye(3)
    >>> embeddings = nd.eye(2, 3)  # the second lies on prototype 1, but is of class 2
    >>> embeddings.attach_grad()
    >>> with autograd.record():
    ...     result = sface_loss(embeddings, prototypes, nd.array([0, 2], dtype="int64"))
    >>> result.loss.asscalar().item(), result.accuracy.asscalar().item()
    (32.0, 0.5)
    >>> result.loss.backward()
    >>> embeddings.grad[1, 2].asscalar().item()  # a step against the gradient turns it to prototype 2
    -32.0
    """
    check_inputs(embeddings, class_weight, labels, epsilon=epsilon)
    rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
    if form == "plain":
        return _plain(embeddings, class_weight, labels, rescaling)
    if form == "streamed":
        from .streamed import streamed  # here, so that this file works alone

        if epsilon is None:
            epsilon = _MACHINE_EPSILON[class_weight.dtype.__name__]
        least_cosine = rescaling.least_cosine(epsilon)
        return streamed(embeddings, class_weight, labels, rescaling, least_cosine, block_size)
    raise ValueError(f'form: expected "plain" or "streamed", got {form!r}')


def _plain(embeddings: NDArray, class_weight: NDArray, labels: NDArray, rescaling: Rescaling) -> SFaceResult:
    unit_embeddings, _ = normalise(embeddings)
    unit_prototypes, _ = normalise(class_weight)
    cosines = nd.dot(unit_embeddings, unit_prototypes, transpose_b=True).clip(-1, 1)
    theta = nd.arccos(cosines.detach())
    is_target = nd.one_hot(labels, len(class_weight), dtype=cosines.dtype)

    target_cosines = nd.pick(cosines, labels)
    r_intra = rescaling.pull(nd.pick(theta, labels))
    r_inter = rescaling.push(theta) * (1 - is_target)

    intra_loss = nd.mean(-r_intra * target_cosines)
    inter_loss = nd.mean(nd.sum(r_inter * cosines, axis=1))

    cosines, target_cosines = cosines.detach(), target_cosines.detach()
    nearest_other = nd.max(cosines - 4 * is_target, axis=1)  # no cosine is below -1
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=nd.mean(target_cosines),
        other_cosine=nd.sum(cosines * (1 - is_target)) / (len(labels) * (len(class_weight) - 1)),
        accuracy=nd.mean(target_cosines >= nearest_other),
    )


class SFaceHead(gluon.Block):
    """Prototypes of all classes and the SFace loss on them; the options are those of `sface_loss`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).

    >>> from mxnet import autograd
    >>> head = SFaceHead(embedding_size=64, num_classes=10)
    >>> head.initialize()
    >>> with autograd.record():
    ...     result = head(nd.random.normal(shape=(8, 64)), nd.arange(8, dtype="int64"))
    >>> result.loss.backward()
    >>> head.class_weight.grad().shape
    (10, 64)
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        scale: float = 64.0,
        intra_slope: float = 80.0,
        inter_slope: float = 80.0,
        intra_center: float = 0.87,
        inter_center: float = 1.2,
        form: Form = "streamed",
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        with self.name_scope():
            self.class_weight = self.params.get(
                "class_weight", shape=(num_classes, embedding_size), init=init.Normal((2 / num_classes) ** 0.5)
            )
        self.rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
        self.form: Form = form
        self.epsilon = epsilon

    def forward(self, embeddings: NDArray, labels: NDArray) -> SFaceResult:
        return sface_loss(
            embeddings,
            self.class_weight.data(embeddings.context),
            labels,
            **self.rescaling._asdict(),
            form=self.form,
            epsilon=self.epsilon,
        )


def normalise(vectors: NDArray) -> tuple[NDArray, NDArray]:
    """Unit vectors (N, D), and the norms (N, 1) that they were divided by, which are at least NORM_FLOOR."""
    # the floor under the root, not on it: the root has no gradient at 0
    norms = nd.sqrt(nd.maximum(nd.sum(vectors * vectors, axis=1, keepdims=True), NORM_FLOOR**2))
    return vectors / norms, norms


def check_inputs(embeddings: NDArray, class_weight: NDArray, labels: NDArray, *, epsilon: float | None = None) -> None:
    """Raise a ValueError that says what was expected and what came; see `sface_loss`."""
    num_classes = len(class_weight)
    if embeddings.ndim != 2 or class_weight.ndim != 2 or embeddings.shape[1] != class_weight.shape[1]:
        raise ValueError(
            "expected embeddings (N, D) and class_weight (C, D) with the same D, "
            f"got {embeddings.shape} and {class_weight.shape}"
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
    if epsilon is not None and not 0 <= epsilon < 1:
        raise ValueError(f"epsilon: expected 0 <= epsilon < 1, or None, got {epsilon}")
    if labels.context.device_type == "cpu":
        values = labels.asnumpy()
        bad = ((values < 0) | (values >= num_classes)).nonzero()[0]
        if len(bad):
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {values[bad[0]]} at row {bad[0]}")
