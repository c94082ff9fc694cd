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

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jittor as jt
from jittor import Var, nn

NORM_FLOOR = 1e-12  # a vector with a smaller norm is divided by this

Form = Literal["plain", "streamed"]
Reduction = Literal["mean", "sum", "none"]

_MACHINE_EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}


class SFaceResult(NamedTuple):
    """The loss and the metrics of a step, all but `loss` detached; of class_weight's dtype, at least float32."""

    loss: Var  # scalar; (N,) with reduction "none", and so are its two parts
    intra_loss: Var
    inter_loss: Var
    target_cosine: Var  # mean over i of cos[i, y_i]
    other_cosine: Var  # mean over i and j != y_i of cos[i, j]
    accuracy: Var  # share of samples to which no other prototype is nearer than their own
    target_cosines: Var  # cos[i, y_i], (N,)
    cosines: Var | None = None  # (N, C), of the plain form only


@dataclass(frozen=True)
class Rescaling:
    """The five numbers of the paper, and the two weights r that they define.

    The centers may also be Vars for the plain form: one number a class, (C,).

    Raises:
        ValueError: scale or a slope is not finite and above 0, or a center is not an angle in radians, 0 to pi.
    """

    scale: float
    intra_slope: float
    inter_slope: float
    intra_center: float | Var
    inter_center: float | Var

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            ends = (value.min().item(), value.max().item()) if isinstance(value, Var) else (value, value)
            least, largest = (float(end) for end in ends)
            if name.endswith("center"):
                if not 0 <= least <= largest < math.pi + 1e-6:  # float32's pi is above pi
                    raise ValueError(f"{name}: expected radians between 0 and pi, got {value}; math.radians converts")
            elif not 0 < least < math.inf:
                raise ValueError(f"{name}: expected a finite number above 0, got {value}")

    def pull(self, theta: Var) -> Var:
        """r_intra of angles of any shape, radians: near 0 below `intra_center`, near `scale` above it."""
        slope, center = _as_data(self.intra_slope, theta), _as_data(self.intra_center, theta)
        return _as_data(self.scale, theta) * jt.sigmoid(slope * (theta - center))

    def push(self, theta: Var) -> Var:
        """r_inter of angles of any shape, radians: near `scale` below `inter_center`, near 0 above it."""
        slope, center = _as_data(-self.inter_slope, theta), _as_data(self.inter_center, theta)
        return _as_data(self.scale, theta) * jt.sigmoid(slope * (theta - center))

    def of_classes(self, labels: Var) -> "Rescaling":
        """The same with each sample's own `intra_center`."""
        center = self.intra_center
        if not isinstance(center, Var):
            return self
        return dataclasses.replace(self, intra_center=center[labels])

    def least_cosine(self, epsilon: float) -> float:
        """The cosine below which r_inter < scale * epsilon; -1 if there is none."""
        if epsilon == 0:
            return -1.0
        angle = float(self.inter_center) + math.log(1 / epsilon - 1) / self.inter_slope
        return math.cos(min(max(angle, 0.0), math.pi))


def sface_loss(
    embeddings: Var,
    class_weight: Var,
    labels: Var,
    *,
    scale: float = 64.0,
    intra_slope: float = 80.0,
    inter_slope: float = 80.0,
    intra_center: float | Var = 0.87,
    inter_center: float | Var = 1.2,
    reduction: Reduction = "mean",
    sample_weight: Var | None = None,
    form: Form = "streamed",
    block_size: int | None = None,
    epsilon: float | None = None,
) -> SFaceResult:
    """SFace loss, differentiable with respect to embeddings and class_weight; in the streamed form once.

    Equivalent: `(-r_intra * target_cosines).mean() + (r_inter * cosines).sum(1).mean()`, r_inter 0 at the targets.

    Args:
        embeddings: raw backbone output, not normalised, (N, D).
        class_weight: one prototype a class, not normalised, (C, D). The computation has its dtype, but at least
            float32, also under mixed precision; use_tensorcore is left out of the streamed form, not of the plain one,
            whose products Jittor runs later.
        labels: class of each sample, 0..C-1, int64 or int32, (N,).
        scale: s, the largest weight of a sample's pull or push.
        intra_slope: k of r_intra, per radian.
        inter_slope: k of r_inter, per radian.
        intra_center: a, the angle at which the pull is half of s, radians; the plain form also takes one a class, (C,).
        inter_center: b, the angle at which the push is half of s, radians; the plain form also takes one a class, (C,).
        reduction: of the samples' losses: "mean", "sum", or "none": a loss a sample. With "none" the streamed form
            computes its entries again in the backward pass.
        sample_weight: each sample's loss is multiplied by it before the reduction, (N,); "mean" still divides by N.
        form: "plain" or "streamed". Both give the same results, except for the pushes that epsilon leaves out.
        block_size: classes in a block of the streamed form, which needs O(N * block_size) memory beside the gradients.
            None: 2048, so that a block stays in a processor's cache; on a CUDA device enough for 2**24 entries.
        epsilon: on the CPU the streamed form leaves out pushes with r_inter < scale * epsilon. 0: none. None: the
            machine epsilon of the dtype, so that float32 results do not move.

    A push that is left out changes inter_loss by less than scale * epsilon / N, the gradient of its embedding x by less
    than scale * epsilon / (N ||x||), and that of its prototype w by less than scale * epsilon / (N ||w||); times the
    sample's weight.

    Raises:
        ValueError: an argument is not as above; the message says which. Labels are checked on the CPU only; on a CUDA
            device the check would make the host wait at every step, and a sample with a wrong label has no own
            prototype.
        RuntimeError: the streamed form is differentiated twice; the plain form can be.

    >>> prototypes = jt.init.eye((3, 3))
    >>> embeddings = jt.init.eye((2, 3))  # the second lies on prototype 1, but is of class 2
    >>> result = sface_loss(embeddings, prototypes, jt.array([0, 2]))
    >>> result.loss.item(), result.accuracy.item()
    (32.0, 0.5)
    >>> gradient = jt.grad(result.loss, embeddings)
    >>> gradient[1, 2].item()  # a step against the gradient turns it to prototype 2
    -32.0
    """
    rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
    check_options(form, reduction, block_size, epsilon)
    check_inputs(embeddings, class_weight, labels, sample_weight)
    check_centers(rescaling, class_weight.shape[0], form)
    dtype = "float64" if class_weight.dtype == "float64" else "float32"
    with jt.flag_scope(amp_reg=int(dtype == "float32")):  # bit 0: mixed precision stays out, also of the backward pass
        embeddings, class_weight = embeddings.cast(dtype), class_weight.cast(dtype)
        factors = number(1 / labels.shape[0] if reduction == "mean" else 1.0, class_weight)
        if sample_weight is None:
            factors = factors.broadcast(labels.shape)
        else:
            factors = factors * sample_weight.detach().cast(dtype)
        if form == "plain":
            return _plain(embeddings, class_weight, labels, rescaling, factors, reduction)

        from .streamed import streamed  # here, so that this file works alone

        least_cosine = rescaling.least_cosine(_MACHINE_EPSILON[dtype] if epsilon is None else epsilon)
        return streamed(embeddings, class_weight, labels, rescaling, factors, reduction, least_cosine, block_size)


def _plain(
    embeddings: Var,
    class_weight: Var,
    labels: Var,
    rescaling: Rescaling,
    factors: Var,
    reduction: Reduction,
) -> SFaceResult:
    batch_size, num_classes = embeddings.shape[0], class_weight.shape[0]
    unit_embeddings, _ = normalise(embeddings)
    unit_prototypes, _ = normalise(class_weight)
    cosines = nn.matmul_transpose(unit_embeddings, unit_prototypes).clamp(-1, 1)
    theta = jt.arccos(cosines.detach())
    is_target = (labels.unsqueeze(1) == jt.arange(num_classes)).cast(cosines.dtype)

    target_cosines = (is_target * cosines).sum(1)
    r_intra = rescaling.of_classes(labels).pull((is_target * theta).sum(1))
    r_inter = rescaling.push(theta) * (1 - is_target)

    intra_loss = reduced(-r_intra * target_cosines, factors, reduction)
    inter_loss = reduced((r_inter * cosines).sum(1), factors, reduction)

    cosines, target_cosines = cosines.detach(), target_cosines.detach()
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=target_cosines.mean(),
        other_cosine=((1 - is_target) * cosines).sum() / number(batch_size * (num_classes - 1), cosines),
        accuracy=(nearer_others(cosines, target_cosines, is_target) == 0).cast(cosines.dtype).mean(),
        target_cosines=target_cosines,
        cosines=cosines,
    )


class SFaceHead(nn.Module):
    """Prototypes of all classes and the SFace loss on them; the options are those of `sface_loss`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).
    `rescale` changes the five numbers, between any two steps.

    >>> head = SFaceHead(embedding_size=64, num_classes=10)
    >>> result = head(jt.randn(8, 64), jt.arange(8))
    >>> gradient = jt.grad(result.loss, head.class_weight)
    >>> tuple(gradient.shape)
    (10, 64)
    >>> head.rescale(intra_center=0.9, inter_center=1.25)
    >>> head
    SFaceHead(64, 10, scale=64.0, intra_slope=80.0, inter_slope=80.0, intra_center=0.9, inter_center=1.25)
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        scale: float = 64.0,
        intra_slope: float = 80.0,
        inter_slope: float = 80.0,
        intra_center: float | Var = 0.87,
        inter_center: float | Var = 1.2,
        reduction: Reduction = "mean",
        form: Form = "streamed",
        block_size: int | None = None,
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        self.rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
        check_options(form, reduction, block_size, epsilon)
        check_centers(self.rescaling, num_classes, form)
        self.class_weight = jt.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5
        self.reduction: Reduction = reduction
        self.form: Form = form
        self.block_size = block_size
        self.epsilon = epsilon

    def rescale(self, **numbers: float | Var) -> None:
        """Change some of scale, intra_slope, inter_slope, intra_center, inter_center; nothing is compiled anew."""
        self.rescaling = dataclasses.replace(self.rescaling, **numbers)

    def execute(self, embeddings: Var, labels: Var, sample_weight: Var | None = None) -> SFaceResult:
        return sface_loss(
            embeddings,
            self.class_weight,
            labels,
            **vars(self.rescaling),
            reduction=self.reduction,
            sample_weight=sample_weight,
            form=self.form,
            block_size=self.block_size,
            epsilon=self.epsilon,
        )

    def extra_repr(self) -> str:
        num_classes, embedding_size = self.class_weight.shape
        numbers = ", ".join(f"{name}={value}" for name, value in vars(self.rescaling).items())
        return f"{embedding_size}, {num_classes}, {numbers}"


def reduced(losses: Var, factors: Var, reduction: Reduction) -> Var:
    """The samples' losses (N,) times `factors` (N,), which hold the 1 / N of a mean; summed unless "none"."""
    weighted = losses * factors
    return weighted if reduction == "none" else weighted.sum()


def normalise(vectors: Var) -> tuple[Var, Var]:
    """Unit vectors (N, D), and the norms (N, 1) that they were divided by, which are at least NORM_FLOOR."""
    # the floor comes before the root, whose slope at 0 is infinite
    norms = jt.sqrt(jt.maximum((vectors * vectors).sum(1, keepdims=True), number(NORM_FLOOR**2, vectors)))
    return vectors / norms, norms


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products that run inside are computed in float32, not in TF32 or less, whatever is set elsewhere."""
    with jt.flag_scope(use_tensorcore=0):
        yield


def check_options(form: str, reduction: str, block_size: int | None, epsilon: float | None) -> None:
    """Raise a ValueError that says what was expected and what came; see `sface_loss`."""
    for name, value, allowed in (("form", form, Form), ("reduction", reduction, Reduction)):
        if value not in get_args(allowed):
            choices = " or ".join(f'"{choice}"' for choice in get_args(allowed))
            raise ValueError(f"{name}: expected {choices}, got {value!r}")
    if block_size is not None and (int(block_size) != block_size or block_size < 1):
        raise ValueError(f"block_size: expected at least 1, or None, got {block_size}")
    if epsilon is not None and not 0 <= epsilon < 1:
        raise ValueError(f"epsilon: expected 0 <= epsilon < 1, or None, got {epsilon}")


def check_centers(rescaling: Rescaling, num_classes: int, form: Form) -> None:
    """Raise a ValueError for centers of classes that do not fit, or in the streamed form."""
    for name, value in vars(rescaling).items():
        if isinstance(value, Var):
            if form == "streamed":
                raise ValueError(f'{name}: expected one number, got {tuple(value.shape)}; use form="plain"')
            if tuple(value.shape) != (num_classes,):
                raise ValueError(f"{name}: expected a number, or ({num_classes},) of them, got {tuple(value.shape)}")


def check_inputs(embeddings: Var, class_weight: Var, labels: Var, sample_weight: Var | None = None) -> None:
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
    if not isinstance(labels, Var):
        raise ValueError(f"labels: expected a Var, got {type(labels).__name__}; jt.array makes one")
    if tuple(labels.shape) != (batch_size,) or str(labels.dtype) not in ("int64", "int32"):
        raise ValueError(
            f"labels: expected int64 or int32 ({batch_size},), got {labels.dtype} {tuple(labels.shape)}; "
            "labels.int64() converts numbers of classes"
        )
    if sample_weight is not None and tuple(sample_weight.shape) != (batch_size,):
        raise ValueError(f"sample_weight: expected ({batch_size},), got {tuple(sample_weight.shape)}")
    if not jt.flags.use_cuda:
        values = labels.numpy()
        bad = ((values < 0) | (values >= num_classes)).nonzero()[0]
        if len(bad):
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {values[bad[0]]} at row {bad[0]}")


def number(value: float, like: Var) -> Var:
    """A number in the dtype of `like`: as a Python number it would be rounded to float32, also beside float64."""
    return jt.array(value, like.dtype)


def _as_data(value: float | Var, like: Var) -> Var:
    """A number, or the numbers of classes, in the dtype of `like`, such that another one compiles no other operator.

    Jittor compiles 0, 1 and 2 of float32 into an operator, but not the numbers next to them.
    """
    if isinstance(value, Var):
        return value.cast(like.dtype)
    nearest = round(value)
    if like.dtype == "float32" and abs(nearest) <= 2 and abs(value - nearest) <= abs(nearest) * 2.0**-24:
        value = nearest * (1 + 2.0**-23) or 1e-30
    return number(value, like)


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
