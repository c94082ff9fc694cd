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
matrix; `streamed.py`). This file can be copied with that one and `streamed.cc`; they need Jittor only.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jittor as jt
from jittor import Var, nn

from jittor_impl.losses.streamed import _accuracy, _mean, _nearer_others, _normalise, _number, streamed

_MACHINE_EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}

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
    block_size: int | None = None,
    epsilon: float | None = None,
) -> SFaceResult:
    """SFace loss, differentiable once with respect to embeddings and class_weight.

    Equivalent: `(-r_intra * target_cosines).mean() + (r_inter * cosines).sum(1).mean()`, r_inter 0 at the targets.

    On the CPU the streamed form leaves out the pushes with r_inter < s epsilon, that is, those at angles above
    b + ln(1 / epsilon - 1) / k. What that changes is below
        s epsilon / N                          in each g[i,j] = r_inter[i,j] / N,
        s epsilon (C - 1)                      in inter_loss,
        s epsilon (C - 1) / (N ||x_i||)        in the gradient for x_i,
        s epsilon / ||w_j||                    in the gradient for w_j.

    Args:
        embeddings: raw backbone output, not normalised, (N, D).
        class_weight: one prototype a class, not normalised, (C, D); its dtype is the dtype of the computation.
        labels: class of each sample, 0..C-1, int32 or int64, (N,).
        scale: s, the largest weight of a sample's pull or push.
        intra_slope: k of r_intra, per radian.
        inter_slope: k of r_inter, per radian.
        intra_center: a, the angle at which the pull is half of s, radians.
        inter_center: b, the angle at which the push is half of s, radians.
        form: "plain" or "streamed"; same results, but for what epsilon leaves out.
        block_size: classes a block of the streamed form, which needs O(N * block_size) memory beside the gradients.
            None: 2048, so that a block stays in a processor's cache; on a CUDA device enough for 2**24 entries.
        epsilon: share of s below which the streamed form leaves pushes out, 0 <= epsilon < 1. 0: none; None: machine
            epsilon of the dtype of the computation, so that float32 results do not move. A CUDA device leaves out none.

    Raises:
        ValueError: shapes do not fit, epsilon is outside its range, or a label is out of range (checked on the CPU
            only: on a CUDA device the check would make the host wait at every step; there such a sample has no own
            prototype).
    """
    _check(embeddings, class_weight, labels)
    if epsilon is None:
        epsilon = _MACHINE_EPSILON[str(class_weight.dtype)]
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon: expected 0 to below 1, got {epsilon}")
    r_intra = partial(intra_weight, scale=scale, slope=intra_slope, center=intra_center)
    r_inter = partial(inter_weight, scale=scale, slope=inter_slope, center=inter_center)
    embeddings = embeddings.cast(class_weight.dtype)
    if form == "plain":
        return _plain(embeddings, class_weight, labels, r_intra, r_inter)
    if form == "streamed":
        least_cosine = _least_cosine(epsilon, inter_slope, inter_center)
        return SFaceResult(
            *streamed(
                embeddings, class_weight, labels, r_intra, r_inter, least_cosine=least_cosine, block_size=block_size
            )
        )
    raise ValueError(f'form: expected "plain" or "streamed", got {form!r}')


def intra_weight(theta: Var, scale: float, slope: float, center: float) -> Var:
    """r_intra: near `scale` for angles above `center`, near 0 below it. Any shape, radians."""
    return _number(scale, theta) * jt.sigmoid(_number(slope, theta) * (theta - _number(center, theta)))


def inter_weight(theta: Var, scale: float, slope: float, center: float) -> Var:
    """r_inter: near `scale` for angles below `center`, near 0 above it. Any shape, radians."""
    return _number(scale, theta) * jt.sigmoid(_number(-slope, theta) * (theta - _number(center, theta)))


def _least_cosine(epsilon: float, slope: float, center: float) -> float:
    """Where r_inter is scale * epsilon; -1 where it is above that at all angles."""
    if epsilon == 0:
        return -1.0
    return math.cos(min(max(center + math.log(1 / epsilon - 1) / slope, 0), math.pi))


def _plain(
    embeddings: Var, class_weight: Var, labels: Var, r_intra: Callable[[Var], Var], r_inter: Callable[[Var], Var]
) -> SFaceResult:
    batch_size, num_classes = embeddings.shape[0], class_weight.shape[0]
    unit_embeddings, _ = _normalise(embeddings)
    unit_prototypes, _ = _normalise(class_weight)
    cosines = nn.matmul_transpose(unit_embeddings, unit_prototypes).clamp(-1, 1)
    theta = jt.arccos(cosines.detach())
    is_target = (labels.unsqueeze(1) == jt.arange(num_classes)).cast(cosines.dtype)

    target_cosines = (is_target * cosines).sum(1)
    pulls = r_intra((is_target * theta).sum(1))
    pushes = r_inter(theta) * (1 - is_target)

    intra_loss = _mean(-pulls * target_cosines)
    inter_loss = _mean((pushes * cosines).sum(1))

    cosines, target_cosines = cosines.detach(), target_cosines.detach()
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=target_cosines.mean(),
        other_cosine=((1 - is_target) * cosines).sum() / _number(batch_size * (num_classes - 1), cosines),
        accuracy=_accuracy(_nearer_others(cosines, target_cosines, is_target)),
    )


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
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        self.class_weight = jt.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5
        self.scale = scale
        self.intra_slope = intra_slope
        self.inter_slope = inter_slope
        self.intra_center = intra_center
        self.inter_center = inter_center
        self.form: Form = form
        self.epsilon = epsilon

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
            epsilon=self.epsilon,
        )


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
