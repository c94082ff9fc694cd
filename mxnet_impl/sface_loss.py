"""SFace: sigmoid-constrained hypersphere loss (Zhong et al., IEEE TIP 2021, arXiv:2205.12010), in MXNet.

For embeddings x (N, D), prototypes w (C, D) and labels y (N,), with x^ = x / ||x|| and w^ = w / ||w||:

    cos[i,j] = x^_i . w^_j                       theta[i,j] = arccos(cos[i,j])
    r_intra[i]   = s / (1 + exp(-k (theta[i,y_i] - a)))       pulls a sample to its prototype until the angle is below a
    r_inter[i,j] = s / (1 + exp( k (theta[i,j]   - b)))       pushes it from the others until the angle is above b
    loss = mean_i( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )

Both r are constants for the gradient: they re-scale it, they are not differentiated. So finite differences of the loss
do not give its gradient, and negative losses are normal.

The loss has no normaliser across classes, hence two forms with the same results: "plain" (autograd, reads like the
equations, holds (N, C) matrices) and "streamed" (blocks of classes in one pass, gradients in closed form, no (N, C)
matrix). This file needs MXNet only and can be copied alone.
"""

from typing import Literal, NamedTuple

from mxnet import autograd, gluon, init, nd
from mxnet.ndarray import NDArray

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero

Form = Literal["plain", "streamed"]


class SFaceResult(NamedTuple):
    """The loss and what to log of a step; shape (1,), all but `loss` without gradient."""

    loss: NDArray
    intra_loss: NDArray
    inter_loss: NDArray
    target_cosine: NDArray  # mean over i of cos[i, y_i]
    other_cosine: NDArray  # mean over i and j != y_i of cos[i, j]
    accuracy: NDArray  # share of samples to which no other prototype is nearer than their own


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
    block_size: int = 1024,
) -> SFaceResult:
    """SFace loss, differentiable once, under `autograd.record()`, with respect to embeddings and class_weight.

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
        form: "plain" or "streamed"; same results.
        block_size: classes a block of the streamed form, which needs O(N * block_size) memory beside the gradients.

    Raises:
        ValueError: shapes do not fit, or a label is out of range (checked on the CPU only: on a CUDA device the check
            would make the host wait at every step; there a wrong label picks the nearest class).
    """
    _check(embeddings, class_weight, labels)
    parameters = (scale, intra_slope, inter_slope, intra_center, inter_center)
    if form == "plain":
        return _plain(embeddings, class_weight, labels, *parameters)
    if form == "streamed":
        return _streamed(embeddings, class_weight, labels, *parameters, block_size)
    raise ValueError(f'form: expected "plain" or "streamed", got {form!r}')


def intra_weight(theta: NDArray, scale: float, slope: float, center: float) -> NDArray:
    """r_intra: near `scale` for angles above `center`, near 0 below it. Any shape, radians."""
    return scale * nd.sigmoid(slope * (theta - center))


def inter_weight(theta: NDArray, scale: float, slope: float, center: float) -> NDArray:
    """r_inter: near `scale` for angles below `center`, near 0 above it. Any shape, radians."""
    return scale * nd.sigmoid(-slope * (theta - center))


def _plain(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    scale: float,
    intra_slope: float,
    inter_slope: float,
    intra_center: float,
    inter_center: float,
) -> SFaceResult:
    unit_embeddings, _ = _normalise(embeddings)
    unit_prototypes, _ = _normalise(class_weight)
    cosines = nd.dot(unit_embeddings, unit_prototypes, transpose_b=True).clip(-1, 1)
    theta = nd.arccos(cosines.detach())
    is_target = nd.one_hot(labels, len(class_weight), dtype=cosines.dtype)

    target_cosines = nd.pick(cosines, labels)
    r_intra = intra_weight(nd.pick(theta, labels), scale, intra_slope, intra_center)
    r_inter = inter_weight(theta, scale, inter_slope, inter_center) * (1 - is_target)

    intra_loss = nd.mean(-r_intra * target_cosines)
    inter_loss = nd.mean(nd.sum(r_inter * cosines, axis=1))

    other_sum = nd.sum(cosines.detach() * (1 - is_target))
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=nd.mean(target_cosines.detach()),
        other_cosine=other_sum / (len(labels) * (len(class_weight) - 1)),
        accuracy=_accuracy(target_cosines.detach(), _largest_other(cosines.detach(), is_target)),
    )


def _streamed(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    scale: float,
    intra_slope: float,
    inter_slope: float,
    intra_center: float,
    inter_center: float,
    block_size: int,
) -> SFaceResult:
    """Loss, metrics and both gradients in one pass over blocks of classes.

    With g[i,j] = r_inter[i,j] / N for j != y_i and g[i,y_i] = -r_intra[i] / N, the gradients for the unit vectors are
    g w^ and g' x^; `_through_normalisation` takes them back to x and w.
    """
    with autograd.pause():
        batch_size, num_classes = len(embeddings), len(class_weight)
        unit_embeddings, embedding_norms = _normalise(embeddings)

        own_prototypes, _ = _normalise(nd.take(class_weight, labels))
        target_cosines = nd.sum(unit_embeddings * own_prototypes, axis=1).clip(-1, 1)
        r_intra = intra_weight(nd.arccos(target_cosines), scale, intra_slope, intra_center)
        intra_loss = nd.mean(-r_intra * target_cosines)

        inter_sum = nd.zeros_like(intra_loss)
        cosine_sum = nd.zeros_like(intra_loss)
        nearest_other = nd.ones_like(target_cosines) * -2
        grad_unit_embeddings = nd.zeros_like(embeddings)
        grad_class_weight = nd.empty(class_weight.shape, class_weight.context, class_weight.dtype)

        for first in range(0, num_classes, block_size):
            last = min(first + block_size, num_classes)
            unit_prototypes, prototype_norms = _normalise(class_weight[first:last])
            cosines = nd.dot(unit_embeddings, unit_prototypes, transpose_b=True).clip(-1, 1)
            is_target = nd.one_hot(labels - first, last - first, dtype=cosines.dtype)
            r_inter = inter_weight(nd.arccos(cosines), scale, inter_slope, inter_center)
            r_inter = r_inter * (1 - is_target)

            inter_sum += nd.sum(r_inter * cosines)
            g = (r_inter - is_target * r_intra.expand_dims(1)) / batch_size
            grad_unit_embeddings += nd.dot(g, unit_prototypes)
            grad_class_weight[first:last] = _through_normalisation(
                nd.dot(g, unit_embeddings, transpose_a=True), unit_prototypes, prototype_norms
            )

            cosine_sum += nd.sum(cosines * (1 - is_target))
            nearest_other = nd.maximum(nearest_other, _largest_other(cosines, is_target))

        grad_embeddings = _through_normalisation(grad_unit_embeddings, unit_embeddings, embedding_norms)
        inter_loss = inter_sum / batch_size
        loss = intra_loss + inter_loss
    return SFaceResult(
        loss=loss
        + _zero_with_gradient(embeddings, grad_embeddings)
        + _zero_with_gradient(class_weight, grad_class_weight),
        intra_loss=intra_loss,
        inter_loss=inter_loss,
        target_cosine=nd.mean(target_cosines),
        other_cosine=cosine_sum / (batch_size * (num_classes - 1)),
        accuracy=_accuracy(target_cosines, nearest_other),
    )


def _zero_with_gradient(variable: NDArray, gradient: NDArray) -> NDArray:
    """0 in value, `gradient` as its gradient for `variable`.

    Not an autograd.Function: that of MXNet 1.9.1 drops the gradients of all inputs after one that needs none, and those
    of parameters with grad_req "add".
    """
    product = nd.dot(variable.reshape(-1), gradient.reshape(-1))
    return product - product.detach()


class SFaceHead(gluon.Block):
    """Prototypes of all classes and the SFace loss on them; the arguments are those of `sface_loss`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).
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
    ) -> None:
        super().__init__()
        with self.name_scope():
            self.class_weight = self.params.get(
                "class_weight", shape=(num_classes, embedding_size), init=init.Normal((2 / num_classes) ** 0.5)
            )
        self.scale = scale
        self.intra_slope = intra_slope
        self.inter_slope = inter_slope
        self.intra_center = intra_center
        self.inter_center = inter_center
        self.form: Form = form

    def forward(self, embeddings: NDArray, labels: NDArray) -> SFaceResult:
        return sface_loss(
            embeddings,
            self.class_weight.data(embeddings.context),
            labels,
            scale=self.scale,
            intra_slope=self.intra_slope,
            inter_slope=self.inter_slope,
            intra_center=self.intra_center,
            inter_center=self.inter_center,
            form=self.form,
        )


def _normalise(vectors: NDArray) -> tuple[NDArray, NDArray]:
    # the floor under the root, not on it: the root has no gradient at 0
    norms = nd.sqrt(nd.maximum(nd.sum(vectors * vectors, axis=1, keepdims=True), NORM_FLOOR**2))
    return vectors / norms, norms


def _through_normalisation(grad_unit: NDArray, unit: NDArray, norms: NDArray) -> NDArray:
    """Gradient for v, given the gradient for v / max(||v||, floor): at the floor that is a plain division."""
    radial = nd.sum(grad_unit * unit, axis=1, keepdims=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / norms


def _largest_other(cosines: NDArray, is_target: NDArray) -> NDArray:
    return nd.max(cosines - 4 * is_target, axis=1)  # no cosine is below -1


def _accuracy(target_cosines: NDArray, nearest_other: NDArray) -> NDArray:
    return nd.mean(target_cosines >= nearest_other)


def _check(embeddings: NDArray, class_weight: NDArray, labels: NDArray) -> None:
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
    if labels.context.device_type == "cpu":
        values = labels.asnumpy()
        bad = ((values < 0) | (values >= num_classes)).nonzero()[0]
        if len(bad):
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {values[bad[0]]} at row {bad[0]}")
