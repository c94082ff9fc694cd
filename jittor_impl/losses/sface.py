"""SFace: sigmoid-constrained hypersphere loss (Zhong et al., IEEE TIP 2021, arXiv:2205.12010), in Jittor.

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
Jittor only.
"""

import math
from typing import Literal, NamedTuple

import jittor as jt
from jittor import Var, nn

NORM_FLOOR = 1e-12  # a vector with a smaller norm is divided by this

Form = Literal["plain", "streamed"]

_MACHINE_EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}


class SFaceResult(NamedTuple):
    """The loss and the metrics of a step: scalars in the dtype of class_weight, all but `loss` detached."""

    loss: Var
    intra_loss: Var
    inter_loss: Var
    target_cosine: Var  # mean over i of cos[i, y_i]
    other_cosine: Var  # mean over i and j != y_i of cos[i, j]
    accuracy: Var  # share of samples to which no other prototype is nearer than their own


class Rescaling(NamedTuple):
    """The five numbers of the paper, and the two weights r that they define."""

    scale: float
    intra_slope: float
    inter_slope: float
    intra_center: float
    inter_center: float

    def pull(self, theta: Var) -> Var:
        """r_intra of angles of any shape, radians: near 0 below `intra_center`, near `scale` above it."""
        slope, center = number(self.intra_slope, theta), number(self.intra_center, theta)
        return number(self.scale, theta) * jt.sigmoid(slope * (theta - center))

    def push(self, theta: Var) -> Var:
        """r_inter of angles of any shape, radians: near `scale` below `inter_center`, near 0 above it."""
        slope, center = number(-self.inter_slope, theta), number(self.inter_center, theta)
        return number(self.scale, theta) * jt.sigmoid(slope * (theta - center))

    def least_cosine(self, epsilon: float) -> float:
        """The cosine below which r_inter < scale * epsilon; -1 if there is none."""
        if epsilon == 0 or self.inter_slope <= 0:
            return -1.0
        angle = self.inter_center + math.log(1 / epsilon - 1) / self.inter_slope
        return math.cos(min(max(angle, 0.0), math.pi))


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

    Args:
        embeddings: raw backbone output, not normalised, (N, D).
        class_weight: one prototype a class, not normalised, (C, D). The computation has its dtype.
        labels: class of each sample, 0..C-1, int32 or int64, (N,).
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
            a sample with a wrong label has no own prototype.

    >>> prototypes = jt.init.eye((3, 3))
    >>> embeddings = jt.init.eye((2, 3))  # the second lies on prototype 1, but is of class 2
    >>> result = sface_loss(embeddings, prototypes, jt.array([0, 2]))
    >>> result.loss.item(), result.accuracy.item()
    (32.0, 0.5)
    >>> gradient = jt.grad(result.loss, embeddings)
    >>> gradient[1, 2].item()  # a step against the gradient turns it to prototype 2
    -32.0
    """
    check_inputs(embeddings, class_weight, labels, epsilon=epsilon)
    rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
    embeddings = embeddings.cast(class_weight.dtype)
    if form == "plain":
        return _plain(embeddings, class_weight, labels, rescaling)
    if form == "streamed":
        from .streamed import streamed  # here, so that this file works alone

        if epsilon is None:
            epsilon = _MACHINE_EPSILON[str(class_weight.dtype)]
        least_cosine = rescaling.least_cosine(epsilon)
        return streamed(embeddings, class_weight, labels, rescaling, least_cosine, block_size)
    raise ValueError(f'form: expected "plain" or "streamed", got {form!r}')


def _plain(embeddings: Var, class_weight: Var, labels: Var, rescaling: Rescaling) -> SFaceResult:
    batch_size, num_classes = embeddings.shape[0], class_weight.shape[0]
    unit_embeddings, _ = normalise(embeddings)
    unit_prototypes, _ = normalise(class_weight)
    cosines = nn.matmul_transpose(unit_embeddings, unit_prototypes).clamp(-1, 1)
    theta = jt.arccos(cosines.detach())
    is_target = (labels.unsqueeze(1) == jt.arange(num_classes)).cast(cosines.dtype)

    target_cosines = (is_target * cosines).sum(1)
    r_intra = rescaling.pull((is_target * theta).sum(1))
    r_inter = rescaling.push(theta) * (1 - is_target)

    intra_loss = mean(-r_intra * target_cosines)
    inter_loss = mean((r_inter * cosines).sum(1))

    cosines, target_cosines = cosines.detach(), target_cosines.detach()
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=target_cosines.mean(),
        other_cosine=((1 - is_target) * cosines).sum() / number(batch_size * (num_classes - 1), cosines),
        accuracy=(nearer_others(cosines, target_cosines, is_target) == 0).cast(cosines.dtype).mean(),
    )


class SFaceHead(nn.Module):
    """Prototypes of all classes and the SFace loss on them; the options are those of `sface_loss`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).

    >>> head = SFaceHead(embedding_size=64, num_classes=10)
    >>> result = head(jt.randn(8, 64), jt.arange(8))
    >>> gradient = jt.grad(result.loss, head.class_weight)
    >>> tuple(gradient.shape)
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
        self.class_weight = jt.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5
        self.rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
        self.form: Form = form
        self.epsilon = epsilon

    def execute(self, embeddings: Var, labels: Var) -> SFaceResult:
        return sface_loss(
            embeddings,
            self.class_weight,
            labels,
            **self.rescaling._asdict(),
            form=self.form,
            epsilon=self.epsilon,
        )


def normalise(vectors: Var) -> tuple[Var, Var]:
    """Unit vectors (N, D), and the norms (N, 1) that they were divided by, which are at least NORM_FLOOR."""
    # the floor comes before the root, whose slope at 0 is infinite
    norms = jt.sqrt(jt.maximum((vectors * vectors).sum(1, keepdims=True), number(NORM_FLOOR**2, vectors)))
    return vectors / norms, norms


def check_inputs(embeddings: Var, class_weight: Var, labels: Var, *, epsilon: float | None = None) -> None:
    """Raise a ValueError that says what was expected and what came; see `sface_loss`."""
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
    if epsilon is not None and not 0 <= epsilon < 1:
        raise ValueError(f"epsilon: expected 0 <= epsilon < 1, or None, got {epsilon}")
    if not jt.flags.use_cuda:
        values = labels.numpy()
        bad = ((values < 0) | (values >= num_classes)).nonzero()[0]
        if len(bad):
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {values[bad[0]]} at row {bad[0]}")


def number(value: float, like: Var) -> Var:
    """A number in the dtype of `like`: as a Python number it would be rounded to float32, also beside float64."""
    return jt.array(value, like.dtype)


def mean(values: Var) -> Var:
    """The mean; the gradient of Var.mean has 1 / n rounded to float32."""
    return values.sum() / number(values.numel(), values)


def nearer_others(cosines: Var, target_cosines: Var, is_target: Var) -> Var:
    """How many other classes each sample (N,) is nearer to than to its own; all of them where a cosine is NaN."""
    is_farther = (cosines <= target_cosines.unsqueeze(1)).cast(cosines.dtype)
    return row_sums((1 - is_farther) * (1 - is_target))


def row_sums(values: Var) -> Var:
    """Sums (N,) of (N, C), as a product: on a CUDA device it takes a quarter of the time of Jittor's own sums."""
    return jt.matmul(values, jt.ones((values.shape[1], 1), values.dtype)).squeeze(1)
