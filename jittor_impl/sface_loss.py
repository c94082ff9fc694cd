"""SFace: sigmoid-constrained hypersphere loss (Zhong et al., IEEE TIP 2021, arXiv:2205.12010), in Jittor.

For embeddings x (N, D), prototypes w (C, D) and labels y (N,), with x^ = x / ||x|| and w^ = w / ||w||:

    cos[i,j] = x^_i . w^_j                       theta[i,j] = arccos(cos[i,j])
    r_intra[i]   = s / (1 + exp(-k (theta[i,y_i] - a)))       pulls a sample to its prototype until the angle is below a
    r_inter[i,j] = s / (1 + exp( k (theta[i,j]   - b)))       pushes it from the others until the angle is above b
    loss = mean_i( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )

Both r are constants for the gradient: they re-scale it, they are not differentiated. So finite differences of the loss
do not give its gradient, and negative losses are normal.

The loss has no normaliser across classes, hence two forms with the same results: "plain" (autograd, reads like the
equations, holds (N, C) matrices) and "streamed" (blocks of classes in one pass, gradients in closed form, no (N, C)
matrix). This file needs Jittor only and can be copied alone.
"""

from typing import Literal, NamedTuple

import jittor as jt
from jittor import Var, nn

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero

Form = Literal["plain", "streamed"]


class SFaceResult(NamedTuple):
    """The loss and what to log of a step; scalars, all but `loss` detached."""

    loss: Var
    intra_loss: Var
    inter_loss: Var
    target_cosine: Var  # mean over i of cos[i, y_i]
    other_cosine: Var  # mean over i and j != y_i of cos[i, j]
    accuracy: Var  # share of samples to which no other prototype is nearer than their own


def sface_loss(
    embeddings: Var,
    class_weight: Var,
    labels: Var,
    *,
    scale: float = 64.0,
    intra_slope: float = 80.0,
    inter_slope: float = 80.0,
    intra_center: float = 0.87,
    inter_center: float = 1.2,
    form: Form = "streamed",
    block_size: int = 1024,
) -> SFaceResult:
    """SFace loss, differentiable once with respect to embeddings and class_weight.

    Equivalent: `(-r_intra * target_cosines).mean() + (r_inter * cosines).sum(1).mean()`, r_inter 0 at the targets.

    Args:
        embeddings: raw backbone output, not normalised, (N, D).
        class_weight: one prototype a class, not normalised, (C, D); its dtype is the dtype of the computation.
        labels: class of each sample, 0..C-1, int32 or int64, (N,).
        scale: s, the largest weight of a sample's pull or push.
        intra_slope: k of r_intra, per radian.
        inter_slope: k of r_inter, per radian.
        intra_center: a, the angle at which the pull is half of s, radians.
        inter_center: b, the angle at which the push is half of s, radians.
        form: "plain" or "streamed"; same results.
        block_size: classes a block of the streamed form, which needs O(N * block_size) memory beside the gradients.

    Raises:
        ValueError: shapes do not fit, or a label is out of range (checked on the CPU only: on a CUDA device the check
            would make the host wait at every step; there such a sample has no own prototype).
    """
    _check(embeddings, class_weight, labels)
    parameters = (scale, intra_slope, inter_slope, intra_center, inter_center)
    embeddings = embeddings.cast(class_weight.dtype)
    if form == "plain":
        return _plain(embeddings, class_weight, labels, *parameters)
    if form == "streamed":
        streamed = _Streamed()
        loss = streamed(embeddings, class_weight, labels, *parameters, block_size)
        return SFaceResult(loss, *streamed.metrics)
    raise ValueError(f'form: expected "plain" or "streamed", got {form!r}')


def intra_weight(theta: Var, scale: float, slope: float, center: float) -> Var:
    """r_intra: near `scale` for angles above `center`, near 0 below it. Any shape, radians."""
    return _number(scale, theta) * jt.sigmoid(_number(slope, theta) * (theta - _number(center, theta)))


def inter_weight(theta: Var, scale: float, slope: float, center: float) -> Var:
    """r_inter: near `scale` for angles below `center`, near 0 above it. Any shape, radians."""
    return _number(scale, theta) * jt.sigmoid(_number(-slope, theta) * (theta - _number(center, theta)))


def _plain(
    embeddings: Var,
    class_weight: Var,
    labels: Var,
    scale: float,
    intra_slope: float,
    inter_slope: float,
    intra_center: float,
    inter_center: float,
) -> SFaceResult:
    batch_size, num_classes = embeddings.shape[0], class_weight.shape[0]
    unit_embeddings, _ = _normalise(embeddings)
    unit_prototypes, _ = _normalise(class_weight)
    cosines = nn.matmul_transpose(unit_embeddings, unit_prototypes).clamp(-1, 1)
    theta = jt.arccos(cosines.detach())
    is_target = (labels.unsqueeze(1) == jt.arange(num_classes)).cast(cosines.dtype)

    target_cosines = (is_target * cosines).sum(1)
    r_intra = intra_weight((is_target * theta).sum(1), scale, intra_slope, intra_center)
    r_inter = inter_weight(theta, scale, inter_slope, inter_center) * (1 - is_target)

    intra_loss = _mean(-r_intra * target_cosines)
    inter_loss = _mean((r_inter * cosines).sum(1))

    cosines, target_cosines = cosines.detach(), target_cosines.detach()
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=target_cosines.mean(),
        other_cosine=((1 - is_target) * cosines).sum() / _number(batch_size * (num_classes - 1), cosines),
        accuracy=_accuracy(target_cosines, _nearest_other(cosines, is_target)),
    )


class _Streamed(jt.Function):
    """Loss, metrics and both gradients in one pass over blocks of classes.

    With g[i,j] = r_inter[i,j] / N for j != y_i and g[i,y_i] = -r_intra[i] / N, the gradients for the unit vectors are
    g w^ and g' x^; `_through_normalisation` takes them back to x and w.
    """

    def execute(
        self,
        embeddings: Var,
        class_weight: Var,
        labels: Var,
        scale: float,
        intra_slope: float,
        inter_slope: float,
        intra_center: float,
        inter_center: float,
        block_size: int,
    ) -> Var:
        embeddings, class_weight, labels = embeddings.detach(), class_weight.detach(), labels.detach()
        batch_size, num_classes = embeddings.shape[0], class_weight.shape[0]
        unit_embeddings, embedding_norms = _normalise(embeddings)

        target_cosines = (unit_embeddings * _normalise(class_weight[labels])[0]).sum(1).clamp(-1, 1)
        r_intra = intra_weight(jt.arccos(target_cosines), scale, intra_slope, intra_center)
        intra_loss = _mean(-r_intra * target_cosines)

        inter_sum = cosine_sum = jt.zeros((1,), embeddings.dtype)
        nearest_other = jt.full((batch_size,), -4, embeddings.dtype)
        grad_unit_embeddings = jt.zeros_like(embeddings)
        grads_class_weight = []

        for first in range(0, num_classes, block_size):
            last = min(first + block_size, num_classes)
            unit_prototypes, prototype_norms = _normalise(class_weight[first:last])
            cosines = nn.matmul_transpose(unit_embeddings, unit_prototypes).clamp(-1, 1)
            is_target = (labels.unsqueeze(1) == jt.arange(first, last)).cast(cosines.dtype)
            r_inter = inter_weight(jt.arccos(cosines), scale, inter_slope, inter_center) * (1 - is_target)

            inter_sum = inter_sum + (r_inter * cosines).sum()
            g = (r_inter - is_target * r_intra.unsqueeze(1)) / _number(batch_size, r_inter)
            grad_unit_embeddings = grad_unit_embeddings + jt.matmul(g, unit_prototypes)
            grad_unit_prototypes = jt.matmul(g.transpose(), unit_embeddings)
            grads_class_weight.append(_through_normalisation(grad_unit_prototypes, unit_prototypes, prototype_norms))

            cosine_sum = cosine_sum + (cosines * (1 - is_target)).sum()
            nearest_other = jt.maximum(nearest_other, _nearest_other(cosines, is_target))
            # execution is lazy: without this, all blocks would be in memory at once
            jt.sync([inter_sum, cosine_sum, nearest_other, grad_unit_embeddings, grads_class_weight[-1]])

        self.grad_embeddings = _through_normalisation(grad_unit_embeddings, unit_embeddings, embedding_norms)
        self.grad_class_weight = jt.concat(grads_class_weight)
        inter_loss = inter_sum / _number(batch_size, inter_sum)
        self.metrics = (
            intra_loss,
            inter_loss,
            target_cosines.mean(),
            cosine_sum / _number(batch_size * (num_classes - 1), cosine_sum),
            _accuracy(target_cosines, nearest_other),
        )
        return intra_loss + inter_loss

    def grad(self, grad_loss: Var) -> tuple[Var | None, ...]:
        return grad_loss * self.grad_embeddings, grad_loss * self.grad_class_weight, *[None] * 7


class SFaceHead(nn.Module):
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
        self.class_weight = jt.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5
        self.scale = scale
        self.intra_slope = intra_slope
        self.inter_slope = inter_slope
        self.intra_center = intra_center
        self.inter_center = inter_center
        self.form: Form = form

    def execute(self, embeddings: Var, labels: Var) -> SFaceResult:
        return sface_loss(
            embeddings,
            self.class_weight,
            labels,
            scale=self.scale,
            intra_slope=self.intra_slope,
            inter_slope=self.inter_slope,
            intra_center=self.intra_center,
            inter_center=self.inter_center,
            form=self.form,
        )


def _number(value: float, like: Var) -> Var:
    """A number in the dtype of `like`: as a Python number it would be rounded to float32, also beside float64."""
    return jt.array(value, like.dtype)


def _mean(values: Var) -> Var:
    # the gradient of Var.mean has 1 / n rounded to float32
    return values.sum() / _number(values.numel(), values)


def _normalise(vectors: Var) -> tuple[Var, Var]:
    # the floor comes before the root, whose slope at 0 is infinite
    norms = jt.sqrt(jt.maximum((vectors * vectors).sum(1, keepdims=True), _number(NORM_FLOOR**2, vectors)))
    return vectors / norms, norms


def _through_normalisation(grad_unit: Var, unit: Var, norms: Var) -> Var:
    """Gradient for v, given the gradient for v / max(||v||, floor): below the floor that is a plain division."""
    radial = (grad_unit * unit).sum(1, keepdims=True) * (norms > _number(NORM_FLOOR, norms))
    return (grad_unit - radial * unit) / norms


def _nearest_other(cosines: Var, is_target: Var) -> Var:
    return (cosines - 4 * is_target).max(1)  # a target is below all others


def _accuracy(target_cosines: Var, nearest_other: Var) -> Var:
    return (target_cosines >= nearest_other).cast(target_cosines.dtype).mean()


def _check(embeddings: Var, class_weight: Var, labels: Var) -> None:
    num_classes = class_weight.shape[0]
    if embeddings.ndim != 2 or class_weight.ndim != 2 or embeddings.shape[1] != class_weight.shape[1]:
        raise ValueError(
            "expected embeddings (N, D) and class_weight (C, D) with the same D, "
            f"got {tuple(embeddings.shape)} and {tuple(class_weight.shape)}"
        )
    batch_size = embeddings.shape[0]
    if batch_size == 0 or num_classes < 2:
        raise ValueError(f"expected at least 1 sample and 2 classes, got {batch_size} and {num_classes}")
    if tuple(labels.shape) != (batch_size,) or str(labels.dtype) not in ("int32", "int64"):
        raise ValueError(f"labels: expected int64 or int32 ({batch_size},), got {labels.dtype} {tuple(labels.shape)}")
    if not jt.flags.use_cuda:
        values = labels.numpy()
        bad = ((values < 0) | (values >= num_classes)).nonzero()[0]
        if len(bad):
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {values[bad[0]]} at row {bad[0]}")
