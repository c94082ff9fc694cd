"""SFace: sigmoid-constrained hypersphere loss (Zhong et al., IEEE TIP 2021, arXiv:2205.12010), in PyTorch.

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
PyTorch only.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

NORM_FLOOR = 1e-12  # a vector with a smaller norm is divided by this

Form = Literal["plain", "streamed"]


class SFaceResult(NamedTuple):
    """The loss and the metrics of a step: scalars in the dtype of class_weight, all but `loss` detached."""

    loss: Tensor
    intra_loss: Tensor
    inter_loss: Tensor
    target_cosine: Tensor  # mean over i of cos[i, y_i]
    other_cosine: Tensor  # mean over i and j != y_i of cos[i, j]
    accuracy: Tensor  # share of samples to which no other prototype is nearer than their own


class Rescaling(NamedTuple):
    """The five numbers of the paper, and the two weights r that they define."""

    scale: float
    intra_slope: float
    inter_slope: float
    intra_center: float
    inter_center: float

    def pull(self, theta: Tensor) -> Tensor:
        """r_intra of angles of any shape, radians: near 0 below `intra_center`, near `scale` above it."""
        return self.scale * torch.sigmoid(self.intra_slope * (theta - self.intra_center))

    def push(self, theta: Tensor) -> Tensor:
        """r_inter of angles of any shape, radians: near `scale` below `inter_center`, near 0 above it."""
        return self.scale * torch.sigmoid(-self.inter_slope * (theta - self.inter_center))

    def least_cosine(self, epsilon: float) -> float:
        """The cosine below which r_inter < scale * epsilon; -1 if there is none."""
        if epsilon == 0 or self.inter_slope <= 0:
            return -1.0
        angle = self.inter_center + math.log(1 / epsilon - 1) / self.inter_slope
        return math.cos(min(max(angle, 0.0), math.pi))


class Shard(NamedTuple):
    """`class_weight` holds a part of all classes; the other parts are with other processes.

    Labels below 0 or from C on are of classes elsewhere. The result is that of all classes, the gradient for the
    embeddings that of this part.
    """

    num_classes: int  # of all parts together
    total: Callable[[Tensor], Tensor]  # sum over the processes, elementwise
    highest: Callable[[Tensor], Tensor]  # maximum over the processes, elementwise


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
        class_weight: one prototype a class, not normalised, (C, D). The computation has its dtype, so under autocast
            angles and loss stay in float32.
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
        compiled: compile a dense block's elementwise part into one kernel (torch.compile, at the first call). Used by
            the streamed form where no push is left out: on a CUDA device, or with epsilon 0.
        shard: class_weight is a part of all classes; for the streamed form only.

    A push that is left out changes inter_loss by less than scale * epsilon / N, the gradient of its embedding x by less
    than scale * epsilon / (N ||x||), and that of its prototype w by less than scale * epsilon / (N ||w||).

    Raises:
        ValueError: shapes do not fit, epsilon is outside [0, 1), the form is unknown, or a label is out of range.
            Labels are checked on the CPU only; on a CUDA device the check would make the host wait at every step, and
            the indexing fails instead.

    >>> prototypes = torch.eye(3)
    >>> embeddings = torch.eye(3)[:2].requires_grad_()  # the second lies on prototype 1, but is of class 2
    >>> result = sface_loss(embeddings, prototypes, torch.tensor([0, 2]))
    >>> result.loss.item(), result.accuracy.item()
    (32.0, 0.5)
    >>> result.loss.backward()
    >>> embeddings.grad[1, 2].item()  # a step against the gradient turns it to prototype 2
    -32.0
    """
    check_inputs(embeddings, class_weight, labels, epsilon=epsilon, shard=shard)
    rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings = embeddings.to(class_weight.dtype)
        if form == "plain":
            return _plain(embeddings, class_weight, labels, rescaling)
        if form == "streamed":
            from .streamed import streamed  # here, so that this file works alone

            if epsilon is None:
                epsilon = torch.finfo(class_weight.dtype).eps
            least_cosine = rescaling.least_cosine(epsilon)
            return streamed(
                embeddings, class_weight, labels, rescaling, least_cosine, block_size, compiled=compiled, shard=shard
            )
    raise ValueError(f'form: expected "plain" or "streamed", got {form!r}')


def _plain(embeddings: Tensor, class_weight: Tensor, labels: Tensor, rescaling: Rescaling) -> SFaceResult:
    unit_embeddings, _ = normalise(embeddings)
    unit_prototypes, _ = normalise(class_weight)
    cosines = (unit_embeddings @ unit_prototypes.T).clamp(-1, 1)
    theta = torch.acos(cosines.detach())
    is_target = nn.functional.one_hot(labels, len(class_weight)).bool()

    target_cosines = cosines.gather(1, labels[:, None])[:, 0]
    r_intra = rescaling.pull(theta.gather(1, labels[:, None])[:, 0])
    r_inter = rescaling.push(theta).masked_fill(is_target, 0)

    intra_loss = (-r_intra * target_cosines).mean()
    inter_loss = (r_inter * cosines).sum(1).mean()

    target_cosines = target_cosines.detach()
    other_cosines = cosines.detach().masked_fill(is_target, 0)
    nearest_other = other_cosines.masked_fill(is_target, -1).amax(1)
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=target_cosines.mean(),
        other_cosine=other_cosines.sum() / (len(labels) * (len(class_weight) - 1)),
        accuracy=(target_cosines >= nearest_other).to(cosines.dtype).mean(),
    )


class SFaceHead(nn.Module):
    """Prototypes of all classes and the SFace loss on them; the options are those of `sface_loss`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).

    >>> head = SFaceHead(embedding_size=64, num_classes=10)
    >>> result = head(torch.randn(8, 64), torch.arange(8))
    >>> result.loss.backward()
    >>> tuple(head.class_weight.grad.shape)
    (10, 64)
    """

    shard: Shard | None = None

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
        self.rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
        self.form: Form = form
        self.epsilon = epsilon
        self.compiled = compiled

    def forward(self, embeddings: Tensor, labels: Tensor) -> SFaceResult:
        return sface_loss(
            embeddings,
            self.class_weight,
            labels,
            **self.rescaling._asdict(),
            form=self.form,
            epsilon=self.epsilon,
            compiled=self.compiled,
            shard=self.shard,
        )


def normalise(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, D), and the norms (N, 1) that they were divided by, which are at least NORM_FLOOR."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(NORM_FLOOR)
    return vectors / norms, norms


def check_inputs(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
    *,
    epsilon: float | None = None,
    shard: Shard | None = None,
) -> None:
    """Raise a ValueError that says what was expected and what came; see `sface_loss`."""
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
    if epsilon is not None and not 0 <= epsilon < 1:
        raise ValueError(f"epsilon: expected 0 <= epsilon < 1, or None, got {epsilon}")
    if labels.device.type == "cpu" and shard is None:
        bad = ((labels < 0) | (labels >= num_classes)).nonzero()
        if len(bad):
            row = int(bad[0])
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {int(labels[row])} at row {row}")
