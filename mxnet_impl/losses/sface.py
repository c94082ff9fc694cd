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

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from mxnet import autograd, gluon, init, nd
from mxnet.ndarray import NDArray

NORM_FLOOR = 1e-12  # a vector with a smaller norm is divided by this

Form = Literal["plain", "streamed"]
Reduction = Literal["mean", "sum", "none"]

_MACHINE_EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}
_SMALL = 2**15  # entries; with fewer in one block, the streamed form's pass takes longer to start than it saves


class SFaceResult(NamedTuple):
    """The loss and the metrics of a step, all but `loss` detached; of class_weight's dtype, at least float32."""

    loss: NDArray  # (1,), as all numbers; (N,) with reduction "none", and so are its two parts
    intra_loss: NDArray
    inter_loss: NDArray
    target_cosine: NDArray  # mean over i of cos[i, y_i]
    other_cosine: NDArray  # mean over i and j != y_i of cos[i, j]
    accuracy: NDArray  # share of samples to which no other prototype is nearer than their own
    target_cosines: NDArray  # cos[i, y_i], (N,)
    cosines: NDArray | None = None  # (N, C), of the plain form only


@dataclass(frozen=True)
class Rescaling:
    """The five numbers of the paper, and the two weights r that they define.

    The centers may also be arrays, for the plain form: one number a class, (C,).

    Raises:
        ValueError: scale or a slope is not finite and above 0, or a center is not an angle in radians, 0 to pi.
    """

    scale: float
    intra_slope: float
    inter_slope: float
    intra_center: float | NDArray
    inter_center: float | NDArray

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            ends = (value.asnumpy().min(), value.asnumpy().max()) if isinstance(value, NDArray) else (value, value)
            least, largest = ends
            if name.endswith("center"):
                if not 0 <= least <= largest < math.pi + 1e-6:  # float32's pi is above pi
                    raise ValueError(f"{name}: expected radians between 0 and pi, got {value}; math.radians converts")
            elif not 0 < least < math.inf:
                raise ValueError(f"{name}: expected a finite number above 0, got {value}")

    def pull(self, theta: NDArray) -> NDArray:
        """r_intra of angles of any shape, radians: near 0 below `intra_center`, near `scale` above it."""
        return self.scale * nd.sigmoid(self.intra_slope * (theta - _fitted(self.intra_center, theta)))

    def push(self, theta: NDArray) -> NDArray:
        """r_inter of angles of any shape, radians: near `scale` below `inter_center`, near 0 above it."""
        return self.scale * nd.sigmoid(-self.inter_slope * (theta - _fitted(self.inter_center, theta)))

    def of_classes(self, labels: NDArray) -> "Rescaling":
        """The same with each sample's own `intra_center`."""
        center = self.intra_center
        if not isinstance(center, NDArray):
            return self
        return dataclasses.replace(self, intra_center=nd.take(center, labels))

    def least_cosine(self, epsilon: float) -> float:
        """The cosine below which r_inter < scale * epsilon; -1 if there is none."""
        if epsilon == 0:
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
    intra_center: float | NDArray = 0.87,
    inter_center: float | NDArray = 1.2,
    reduction: Reduction = "mean",
    sample_weight: NDArray | None = None,
    form: Form = "streamed",
    block_size: int | None = None,
    epsilon: float | None = None,
) -> SFaceResult:
    """SFace loss, under `autograd.record()` differentiable once with respect to embeddings and class_weight.

    Equivalent: `(-r_intra * target_cosines).mean() + (r_inter * cosines).sum(1).mean()`, r_inter 0 at the targets.

    Args:
        embeddings: raw backbone output, not normalised, (N, D).
        class_weight: one prototype a class, not normalised, (C, D). The computation has its dtype, but at least
            float32.
        labels: class of each sample, 0..C-1, int64 or int32, (N,).
        scale: s, the largest weight of a sample's pull or push.
        intra_slope: k of r_intra, per radian.
        inter_slope: k of r_inter, per radian.
        intra_center: a, the angle at which the pull is half of s, radians; the plain form also takes one a class, (C,).
        inter_center: b, the angle at which the push is half of s, radians; the plain form also takes one a class, (C,).
        reduction: of the samples' losses: "mean", "sum", or "none": a loss a sample. With "none" the streamed form
            computes its entries again in the backward pass.
        sample_weight: each sample's loss is multiplied by it before the reduction, (N,); "mean" still divides by N.
        form: "plain" or "streamed". Both give the same results, except for the pushes that epsilon leaves out. On the
            CPU "streamed" computes as "plain" does if N * C < 2**15, C <= 2048 and block_size is None.
        block_size: classes in a block of the streamed form, which needs O(N * block_size) memory beside the gradients.
            None: 2048, so that a block stays in a processor's cache; on a CUDA device enough for 2**24 entries.
        epsilon: on the CPU the streamed form leaves out pushes with r_inter < scale * epsilon. 0: none. None: the
            machine epsilon of the dtype, so that float32 results do not move.

    A push that is left out changes inter_loss by less than scale * epsilon / N, the gradient of its embedding x by less
    than scale * epsilon / (N ||x||), and that of its prototype w by less than scale * epsilon / (N ||w||); times the
    sample's weight.

    Raises:
        ValueError: an argument is not as above; the message says which. Labels are checked on the CPU only; on a CUDA
            device the check would make the host wait at every step, and a wrong label picks the nearest class.
        MXNetError: the loss is differentiated twice, which MXNet's operators cannot be in either form.

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
    rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
    check_options(form, reduction, block_size, epsilon)
    check_inputs(embeddings, class_weight, labels, sample_weight)
    check_centers(rescaling, len(class_weight), form)
    dtype = "float64" if class_weight.dtype.__name__ == "float64" else "float32"
    embeddings, class_weight = embeddings.astype(dtype, copy=False), class_weight.astype(dtype, copy=False)
    labels = labels.astype("int64", copy=False)
    factors = nd.ones(len(labels), labels.context) if sample_weight is None else sample_weight.detach()
    factors = factors.astype(dtype, copy=False)
    if reduction == "mean":
        factors = factors / len(labels)
    fits = labels.context.device_type == "cpu" and block_size is None and len(class_weight) <= 2048
    is_small = fits and len(labels) * len(class_weight) < _SMALL
    if form == "plain" or is_small:
        result = _plain(embeddings, class_weight, labels, rescaling, factors, reduction)
        return result if form == "plain" else result._replace(cosines=None)

    from .streamed import streamed  # here, so that this file works alone

    least_cosine = rescaling.least_cosine(_MACHINE_EPSILON[dtype] if epsilon is None else epsilon)
    return streamed(embeddings, class_weight, labels, rescaling, factors, reduction, least_cosine, block_size)


def _plain(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    rescaling: Rescaling,
    factors: NDArray,
    reduction: Reduction,
) -> SFaceResult:
    unit_embeddings, _ = normalise(embeddings)
    unit_prototypes, _ = normalise(class_weight)
    cosines = nd.dot(unit_embeddings, unit_prototypes, transpose_b=True).clip(-1, 1)
    is_target = nd.one_hot(labels, len(class_weight), dtype=cosines.dtype)
    target_cosines = nd.pick(cosines, labels)

    with autograd.pause():  # both r are constants for the gradient
        theta = nd.arccos(cosines)
        r_intra = rescaling.of_classes(labels).pull(nd.pick(theta, labels))
        r_inter = rescaling.push(theta) * (1 - is_target)

    intra_loss = reduced(-r_intra * target_cosines, factors, reduction)
    inter_loss = reduced(nd.sum(r_inter * cosines, axis=1), factors, reduction)

    cosines, target_cosines = cosines.detach(), target_cosines.detach()
    nearest_other = nd.max(cosines - 4 * is_target, axis=1)  # no cosine is below -1
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=nd.mean(target_cosines),
        other_cosine=nd.sum(cosines * (1 - is_target)) / (len(labels) * (len(class_weight) - 1)),
        accuracy=nd.mean(target_cosines >= nearest_other),
        target_cosines=target_cosines,
        cosines=cosines,
    )


class SFaceHead(gluon.Block):
    """Prototypes of all classes and the SFace loss on them; the options are those of `sface_loss`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).
    `rescale` changes the five numbers, between any two steps. Gluon takes arguments by position only:
    head(embeddings, labels, sample_weight).

    >>> from mxnet import autograd
    >>> head = SFaceHead(embedding_size=64, num_classes=10)
    >>> head.initialize()
    >>> with autograd.record():
    ...     result = head(nd.random.normal(shape=(8, 64)), nd.arange(8, dtype="int64"))
    >>> result.loss.backward()
    >>> head.class_weight.grad().shape
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
        intra_center: float | NDArray = 0.87,
        inter_center: float | NDArray = 1.2,
        reduction: Reduction = "mean",
        form: Form = "streamed",
        block_size: int | None = None,
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        self.rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
        check_options(form, reduction, block_size, epsilon)
        check_centers(self.rescaling, num_classes, form)
        with self.name_scope():
            self.class_weight = self.params.get(
                "class_weight", shape=(num_classes, embedding_size), init=init.Normal((2 / num_classes) ** 0.5)
            )
        self.reduction: Reduction = reduction
        self.form: Form = form
        self.block_size = block_size
        self.epsilon = epsilon

    def rescale(self, **numbers: float | NDArray) -> None:
        """Change some of scale, intra_slope, inter_slope, intra_center, inter_center; nothing is compiled anew."""
        self.rescaling = dataclasses.replace(self.rescaling, **numbers)

    def forward(self, embeddings: NDArray, labels: NDArray, sample_weight: NDArray | None = None) -> SFaceResult:
        return sface_loss(
            embeddings,
            self.class_weight.data(embeddings.context),
            labels,
            **vars(self.rescaling),
            reduction=self.reduction,
            sample_weight=sample_weight,
            form=self.form,
            block_size=self.block_size,
            epsilon=self.epsilon,
        )

    def __repr__(self) -> str:
        num_classes, embedding_size = self.class_weight.shape
        numbers = ", ".join(f"{name}={value}" for name, value in vars(self.rescaling).items())
        return f"{type(self).__name__}({embedding_size}, {num_classes}, {numbers})"


def reduced(losses: NDArray, factors: NDArray, reduction: Reduction) -> NDArray:
    """The samples' losses (N,) times `factors` (N,), which hold the 1 / N of a mean; summed unless "none"."""
    weighted = losses * factors
    return weighted if reduction == "none" else weighted.sum()


def normalise(vectors: NDArray) -> tuple[NDArray, NDArray]:
    """Unit vectors (N, D), and the norms (N, 1) that they were divided by, which are at least NORM_FLOOR."""
    # the floor under the root, not on it: the root has no gradient at 0
    norms = nd.sqrt(nd.maximum(nd.sum(vectors * vectors, axis=1, keepdims=True), NORM_FLOOR**2))
    return vectors / norms, norms


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
        if isinstance(value, NDArray):
            if form == "streamed":
                raise ValueError(f'{name}: expected one number, got {value.shape}; use form="plain"')
            if value.shape != (num_classes,):
                raise ValueError(f"{name}: expected a number, or ({num_classes},) of them, got {value.shape}")


def check_inputs(
    embeddings: NDArray, class_weight: NDArray, labels: NDArray, sample_weight: NDArray | None = None
) -> None:
    """Raise a ValueError that says what was expected and what came; see `sface_loss`."""
    num_classes = len(class_weight)
    if embeddings.ndim != 2 or class_weight.ndim != 2 or embeddings.shape[1] != class_weight.shape[1]:
        raise ValueError(
            "expected embeddings (N, D) and class_weight (C, D) with the same D, "
            f"got {embeddings.shape} and {class_weight.shape}"
        )
    if len(embeddings) == 0 or num_classes < 2:
        raise ValueError(f"expected at least 1 sample and 2 classes, got {len(embeddings)} and {num_classes}")
    if not isinstance(labels, NDArray):
        raise ValueError(
            f'labels: expected an NDArray, got {type(labels).__name__}; nd.array(labels, dtype="int64") makes one'
        )
    if labels.shape != embeddings.shape[:1] or labels.dtype.__name__ not in ("int64", "int32"):
        raise ValueError(
            f"labels: expected int64 or int32 ({len(embeddings)},), got {labels.dtype.__name__} {labels.shape}; "
            'labels.astype("int64") converts numbers of classes'
        )
    if sample_weight is not None and sample_weight.shape != labels.shape:
        raise ValueError(f"sample_weight: expected ({len(embeddings)},), got {sample_weight.shape}")
    if labels.context.device_type == "cpu":
        values = labels.asnumpy()
        bad = ((values < 0) | (values >= num_classes)).nonzero()[0]
        if len(bad):
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {values[bad[0]]} at row {bad[0]}")


def _fitted(center: float | NDArray, theta: NDArray) -> float | NDArray:
    """A center for a difference with theta, where MXNet neither casts nor adds a dimension."""
    if not isinstance(center, NDArray):
        return center
    return center.astype(theta.dtype, copy=False).reshape((1,) * (theta.ndim - 1) + (-1,))
