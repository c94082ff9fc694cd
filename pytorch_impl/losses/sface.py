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
matrix; `streamed.py`). This file can be copied with that one and `screening.py`; they need PyTorch only.
"""

import math
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytorch_impl.losses.streamed import NORM_FLOOR, Shard, _accuracy, _Weight, streamed

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
    block_size: int | None = None,
    epsilon: float | None = None,
    compiled: bool = False,
    shard: Shard | None = None,
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
            None: 2048, so that a block stays in a processor's cache; on a CUDA device enough for 2**24 entries.
        epsilon: on the CPU the streamed form leaves out each push below scale * epsilon; 0 leaves out nothing; None is
            the machine epsilon of the dtype. A push left out changes inter_loss by less than scale * epsilon / N, the
            gradient of its embedding x by less than that over ||x||, and that of its prototype w over ||w||.
        compiled: where the streamed form leaves out no push (on a CUDA device, or with epsilon 0), compute what becomes
            of a block's product in one kernel, compiled at the first call (torch.compile).
        shard: class_weight is a part of all classes, and labels below 0 or from C on are of classes elsewhere: for the
            streamed form only, see `streamed.py`.

    Raises:
        ValueError: shapes do not fit, epsilon is not in [0, 1), or a label is out of range (checked on the CPU only: on
            a CUDA device the check would make the host wait at every step; there the indexing fails instead).
    """
    _check(embeddings, class_weight, labels, shard)
    r_intra = partial(intra_weight, scale=scale, slope=intra_slope, center=intra_center)
    r_inter = partial(inter_weight, scale=scale, slope=inter_slope, center=inter_center)
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings.to(class_weight.dtype)
        if form == "plain":
            return _plain(embeddings, class_weight, labels, r_intra, r_inter)
        if form == "streamed":
            if epsilon is None:
                epsilon = torch.finfo(class_weight.dtype).eps
            least_cosine = _least_cosine(epsilon, inter_slope, inter_center)
            return SFaceResult(
                *streamed(
                    embeddings,
                    class_weight,
                    labels,
                    r_intra,
                    r_inter,
                    least_cosine=least_cosine,
                    block_size=block_size,
                    compiled=compiled,
                    shard=shard,
                )
            )
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
    r_intra: _Weight,
    r_inter: _Weight,
) -> SFaceResult:
    unit_embeddings = F.normalize(embeddings, eps=NORM_FLOOR)
    unit_prototypes = F.normalize(class_weight, eps=NORM_FLOOR)
    cosines = (unit_embeddings @ unit_prototypes.T).clamp(-1, 1)
    theta = torch.acos(cosines.detach())
    is_target = F.one_hot(labels, len(class_weight)).bool()

    target_cosines = cosines.gather(1, labels[:, None])[:, 0]
    pull = r_intra(torch.acos(target_cosines.detach()))
    push = r_inter(theta).masked_fill(is_target, 0)

    intra_loss = (-pull * target_cosines).mean()
    inter_loss = (push * cosines).sum(1).mean()

    other_cosines = cosines.detach().masked_fill(is_target, 0)
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=target_cosines.detach().mean(),
        other_cosine=other_cosines.sum() / (len(labels) * (len(class_weight) - 1)),
        accuracy=_accuracy(target_cosines.detach(), other_cosines.masked_fill(is_target, -1).amax(1)),
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
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.class_weight = nn.Parameter(torch.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5)
        self.scale = scale
        self.intra_slope = intra_slope
        self.inter_slope = inter_slope
        self.intra_center = intra_center
        self.inter_center = inter_center
        self.form: Form = form
        self.epsilon = epsilon
        self.compiled = compiled

    def forward(self, embeddings: Tensor, labels: Tensor) -> SFaceResult:
        return self._loss(embeddings, labels)

    def _loss(self, embeddings: Tensor, labels: Tensor, shard: Shard | None = None) -> SFaceResult:
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
            compiled=self.compiled,
            shard=shard,
        )


def _least_cosine(epsilon: float, slope: float, center: float) -> float:
    """The cosine below which r_inter < scale * epsilon; -1 if there is none."""
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon: expected 0 <= epsilon < 1, got {epsilon}")
    if epsilon == 0 or slope <= 0:
        return -1.0
    return math.cos(min(math.pi, max(0.0, center + math.log(1 / epsilon - 1) / slope)))


def _check(embeddings: Tensor, class_weight: Tensor, labels: Tensor, shard: Shard | None) -> None:
    num_classes = len(class_weight) if shard is None else shard.num_classes
    if embeddings.ndim != 2 or class_weight.ndim != 2 or embeddings.shape[1] != class_weight.shape[1]:
        raise ValueError(
            "expected embeddings (N, D) and class_weight (C, D) with the same D, "
            f"got {tuple(embeddings.shape)} and {tuple(class_weight.shape)}"
        )
    if len(embeddings) == 0 or num_classes < 2:
        raise ValueError(f"expected at least 1 sample and 2 classes, got {len(embeddings)} and {num_classes}")
    if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected int64 ({len(embeddings)},), got {labels.dtype} {tuple(labels.shape)}")
    if labels.device.type == "cpu" and shard is None:
        bad = ((labels < 0) | (labels >= num_classes)).nonzero()
        if len(bad):
            row = int(bad[0])
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {int(labels[row])} at row {row}")
