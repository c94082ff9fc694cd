"""SFace: sigmoid-constrained hypersphere loss (Zhong et al., IEEE TIP 2021, arXiv:2205.12010), in PyTorch.

For embeddings x (N, D), prototypes w (C, D) and labels y (N,), with x^ = x / ||x|| and w^ = w / ||w||:

    cos[i,j] = x^_i . w^_j                       theta[i,j] = arccos(cos[i,j])
    r_intra[i]   = s / (1 + exp(-k (theta[i,y_i] - a)))       pulls a sample to its prototype until the angle is below a
    r_inter[i,j] = s / (1 + exp( k (theta[i,j]   - b)))       pushes it from the others until the angle is above b
    loss = mean_i( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )

Both r are constants for the gradient: they re-scale it, they are not differentiated. So finite differences of the loss
do not give its gradient, and negative losses are normal.

The loss has no normaliser across classes, hence two forms with the same results: "plain" (autograd, reads like the
equations, holds (N, C) matrices) and "streamed" (blocks of classes in one pass, gradients in closed form, no (N, C)
matrix). This file needs PyTorch only and can be copied alone.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero

Form = Literal["plain", "streamed"]


class SFaceResult(NamedTuple):
    """The loss and what to log of a step; scalars, all but `loss` detached."""

    loss: Tensor
    intra_loss: Tensor
    inter_loss: Tensor
    target_cosine: Tensor  # mean over i of cos[i, y_i]
    other_cosine: Tensor  # mean over i and j != y_i of cos[i, j]
    accuracy: Tensor  # share of samples to which no other prototype is nearer than their own


def sface_loss(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
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
        class_weight: one prototype a class, not normalised, (C, D); its dtype is the dtype of the computation, so that
            under autocast angles and loss stay in float32.
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
            would make the host wait at every step; there the indexing fails instead).
    """
    _check(embeddings, class_weight, labels)
    parameters = (scale, intra_slope, inter_slope, intra_center, inter_center)
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings.to(class_weight.dtype)
        if form == "plain":
            return _plain(embeddings, class_weight, labels, *parameters)
        if form == "streamed":
            return SFaceResult(*_Streamed.apply(embeddings, class_weight, labels, *parameters, block_size))
    raise ValueError(f'form: expected "plain" or "streamed", got {form!r}')


def intra_weight(theta: Tensor, scale: float, slope: float, center: float) -> Tensor:
    """r_intra: near `scale` for angles above `center`, near 0 below it. Any shape, radians."""
    return scale * torch.sigmoid(slope * (theta - center))


def inter_weight(theta: Tensor, scale: float, slope: float, center: float) -> Tensor:
    """r_inter: near `scale` for angles below `center`, near 0 above it. Any shape, radians."""
    return scale * torch.sigmoid(-slope * (theta - center))


def _plain(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
    scale: float,
    intra_slope: float,
    inter_slope: float,
    intra_center: float,
    inter_center: float,
) -> SFaceResult:
    unit_embeddings = F.normalize(embeddings, eps=NORM_FLOOR)
    unit_prototypes = F.normalize(class_weight, eps=NORM_FLOOR)
    cosines = (unit_embeddings @ unit_prototypes.T).clamp(-1, 1)
    theta = torch.acos(cosines.detach())
    is_target = F.one_hot(labels, len(class_weight)).bool()

    target_cosines = cosines[is_target]
    r_intra = intra_weight(theta[is_target], scale, intra_slope, intra_center)
    r_inter = inter_weight(theta, scale, inter_slope, inter_center).masked_fill(is_target, 0)

    intra_loss = (-r_intra * target_cosines).mean()
    inter_loss = (r_inter * cosines).sum(1).mean()

    other_cosines = cosines.detach()[~is_target].view(len(labels), -1)
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=target_cosines.detach().mean(),
        other_cosine=other_cosines.mean(),
        accuracy=_accuracy(target_cosines.detach(), other_cosines.amax(1)),
    )


class _Streamed(torch.autograd.Function):
    """Loss, metrics and both gradients in one pass over blocks of classes.

    With g[i,j] = r_inter[i,j] / N for j != y_i and g[i,y_i] = -r_intra[i] / N, the gradients for the unit vectors are
    g w^ and g' x^; `_through_normalisation` takes them back to x and w.
    """

    @staticmethod
    def forward(
        ctx,
        embeddings: Tensor,
        class_weight: Tensor,
        labels: Tensor,
        scale: float,
        intra_slope: float,
        inter_slope: float,
        intra_center: float,
        inter_center: float,
        block_size: int,
    ) -> tuple[Tensor, ...]:
        batch_size, num_classes = len(embeddings), len(class_weight)
        unit_embeddings, embedding_norms = _normalise(embeddings)

        target_cosines = (unit_embeddings * _normalise(class_weight[labels])[0]).sum(1).clamp(-1, 1)
        r_intra = intra_weight(torch.acos(target_cosines), scale, intra_slope, intra_center)
        intra_loss = (-r_intra * target_cosines).mean()

        inter_sum = embeddings.new_zeros(())
        cosine_sum = embeddings.new_zeros(())
        nearest_other = embeddings.new_full((batch_size,), -torch.inf)
        grad_unit_embeddings = torch.zeros_like(embeddings)
        grad_class_weight = torch.empty_like(class_weight)

        for first in range(0, num_classes, block_size):
            block = slice(first, min(first + block_size, num_classes))
            unit_prototypes, prototype_norms = _normalise(class_weight[block])
            cosines = (unit_embeddings @ unit_prototypes.T).clamp_(-1, 1)
            is_target = labels[:, None] == torch.arange(block.start, block.stop, device=labels.device)
            r_inter = inter_weight(torch.acos(cosines), scale, inter_slope, inter_center).masked_fill_(is_target, 0)

            inter_sum += (r_inter * cosines).sum()
            g = torch.where(is_target, -r_intra[:, None], r_inter) / batch_size
            grad_unit_embeddings += g @ unit_prototypes
            grad_class_weight[block] = _through_normalisation(g.T @ unit_embeddings, unit_prototypes, prototype_norms)

            cosine_sum += cosines.masked_fill(is_target, 0).sum()
            nearest_other = torch.maximum(nearest_other, cosines.masked_fill_(is_target, -torch.inf).amax(1))

        ctx.save_for_backward(
            _through_normalisation(grad_unit_embeddings, unit_embeddings, embedding_norms), grad_class_weight
        )
        inter_loss = inter_sum / batch_size
        metrics = (
            intra_loss,
            inter_loss,
            target_cosines.mean(),
            cosine_sum / (batch_size * (num_classes - 1)),
            _accuracy(target_cosines, nearest_other),
        )
        ctx.mark_non_differentiable(*metrics)
        return intra_loss + inter_loss, *metrics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_embeddings, grad_class_weight = ctx.saved_tensors
        return grad_loss * grad_embeddings, grad_loss * grad_class_weight, *[None] * 7


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
        self.class_weight = nn.Parameter(torch.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5)
        self.scale = scale
        self.intra_slope = intra_slope
        self.inter_slope = inter_slope
        self.intra_center = intra_center
        self.inter_center = inter_center
        self.form: Form = form

    def forward(self, embeddings: Tensor, labels: Tensor) -> SFaceResult:
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


def _normalise(vectors: Tensor) -> tuple[Tensor, Tensor]:
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / norms.clamp_min(NORM_FLOOR), norms


def _through_normalisation(grad_unit: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """Gradient for v, given the gradient for v / max(||v||, floor): below the floor that is a plain division."""
    radial = (grad_unit * unit).sum(1, keepdim=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / norms.clamp_min(NORM_FLOOR)


def _accuracy(target_cosines: Tensor, nearest_other: Tensor) -> Tensor:
    return (target_cosines >= nearest_other).to(target_cosines.dtype).mean()


def _check(embeddings: Tensor, class_weight: Tensor, labels: Tensor) -> None:
    num_classes = len(class_weight)
    if embeddings.ndim != 2 or class_weight.ndim != 2 or embeddings.shape[1] != class_weight.shape[1]:
        raise ValueError(
            "expected embeddings (N, D) and class_weight (C, D) with the same D, "
            f"got {tuple(embeddings.shape)} and {tuple(class_weight.shape)}"
        )
    if len(embeddings) == 0 or num_classes < 2:
        raise ValueError(f"expected at least 1 sample and 2 classes, got {len(embeddings)} and {num_classes}")
    if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected int64 ({len(embeddings)},), got {labels.dtype} {tuple(labels.shape)}")
    if labels.device.type == "cpu":
        bad = ((labels < 0) | (labels >= num_classes)).nonzero()
        if len(bad):
            row = int(bad[0])
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {int(labels[row])} at row {row}")
