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

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

NORM_FLOOR = 1e-12  # a vector with a smaller norm is divided by this

Form = Literal["plain", "streamed"]
Reduction = Literal["mean", "sum", "none"]


class SFaceResult(NamedTuple):
    """The loss and the metrics of a step, all but `loss` detached; of class_weight's dtype, at least float32."""

    loss: Tensor  # scalar; (N,) with reduction "none", and so are its two parts
    intra_loss: Tensor
    inter_loss: Tensor
    target_cosine: Tensor  # mean over i of cos[i, y_i]
    other_cosine: Tensor  # mean over i and j != y_i of cos[i, j]
    accuracy: Tensor  # share of samples to which no other prototype is nearer than their own
    target_cosines: Tensor  # cos[i, y_i], (N,)
    cosines: Tensor | None = None  # (N, C), of the plain form only


@dataclass(frozen=True)
class Rescaling:
    """The five numbers of the paper, and the two weights r that they define.

    The centers may also be tensors: a scalar, or for the plain form one number a class, (C,).

    Raises:
        ValueError: scale or a slope is not finite and above 0, or a center is not an angle in radians, 0 to pi.
    """

    scale: float
    intra_slope: float
    inter_slope: float
    intra_center: float | Tensor
    inter_center: float | Tensor

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least, largest = (float(end) for end in (value.aminmax() if isinstance(value, Tensor) else (value, value)))
            if name.endswith("center"):
                if not 0 <= least <= largest < math.pi + 1e-6:  # float32's pi is above pi
                    raise ValueError(f"{name}: expected radians between 0 and pi, got {value}; math.radians converts")
            elif not 0 < least < math.inf:
                raise ValueError(f"{name}: expected a finite number above 0, got {value}")

    def pull(self, theta: Tensor) -> Tensor:
        """r_intra of angles of any shape, radians: near 0 below `intra_center`, near `scale` above it."""
        return self.scale * torch.sigmoid(self.intra_slope * (theta - _like(theta, self.intra_center)))

    def push(self, theta: Tensor) -> Tensor:
        """r_inter of angles of any shape, radians: near `scale` below `inter_center`, near 0 above it."""
        return self.scale * torch.sigmoid(-self.inter_slope * (theta - _like(theta, self.inter_center)))

    def of_classes(self, labels: Tensor) -> "Rescaling":
        """The same with each sample's own `intra_center`."""
        center = self.intra_center
        if not isinstance(center, Tensor) or center.ndim == 0:
            return self
        return dataclasses.replace(self, intra_center=center[labels])

    def least_cosine(self, epsilon: float) -> float:
        """The cosine below which r_inter < scale * epsilon; -1 if there is none."""
        if epsilon == 0:
            return -1.0
        angle = float(self.inter_center) + math.log(1 / epsilon - 1) / self.inter_slope
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
    intra_center: float | Tensor = 0.87,
    inter_center: float | Tensor = 1.2,
    reduction: Reduction = "mean",
    sample_weight: Tensor | None = None,
    form: Form = "streamed",
    block_size: int | None = None,
    epsilon: float | None = None,
    screened: bool | None = None,
    compiled: bool = False,
    shard: Shard | None = None,
) -> SFaceResult:
    """SFace loss, differentiable with respect to embeddings and class_weight; in the streamed form once.

    Equivalent: `(-r_intra * target_cosines).mean() + (r_inter * cosines).sum(1).mean()`, r_inter 0 at the targets.

    Args:
        embeddings: raw backbone output, not normalised, (N, D).
        class_weight: one prototype a class, not normalised, (C, D). The computation has its dtype, but at least
            float32, also under autocast and if the matmul precision is set to less.
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
        epsilon: the streamed form leaves out pushes with r_inter < scale * epsilon, on the CPU or if `screened`. 0:
            none. None: the machine epsilon of the dtype, so that float32 results do not move.
        screened: look for the pushes that count among float16 products, for which a GPU has special units. None: the
            CPU's own way on the CPU, and on a CUDA device no: neither time nor memory was measured there.
        compiled: compile a dense block's elementwise part into one kernel (torch.compile, at the first call). Used by
            the streamed form where no push is left out: on a CUDA device, or with epsilon 0.
        shard: class_weight is a part of all classes; for the streamed form only.

    A push that is left out changes inter_loss by less than scale * epsilon / N, the gradient of its embedding x by less
    than scale * epsilon / (N ||x||), and that of its prototype w by less than scale * epsilon / (N ||w||); times the
    sample's weight.

    Raises:
        ValueError: an argument is not as above; the message says which. Labels are checked on the CPU only; on a CUDA
            device the check would make the host wait at every step, and the indexing fails instead.
        RuntimeError: the streamed form is differentiated twice, or under vmap; the plain form can be.

    >>> prototypes = torch.eye(3)
    >>> embeddings = torch.eye(3)[:2].requires_grad_()  # the second lies on prototype 1, but is of class 2
    >>> result = sface_loss(embeddings, prototypes, torch.tensor([0, 2]))
    >>> result.loss.item(), result.accuracy.item()
    (32.0, 0.5)
    >>> result.loss.backward()
    >>> embeddings.grad[1, 2].item()  # a step against the gradient turns it to prototype 2
    -32.0
    """
    rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
    check_options(form, reduction, block_size, epsilon)
    if shard is None:  # else labels of other parts are right, and who gathered them has checked them
        check_inputs(embeddings, class_weight, labels, sample_weight)
    check_centers(rescaling, len(class_weight), form)
    dtype = torch.promote_types(class_weight.dtype, torch.float32)
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings, class_weight, labels = embeddings.to(dtype), class_weight.to(dtype), labels.long()
        factor = 1 / len(labels) if reduction == "mean" else 1.0
        factors = embeddings.new_full(labels.shape, factor)
        if sample_weight is not None:
            factors *= sample_weight.detach()
        if form == "plain":
            return _plain(embeddings, class_weight, labels, rescaling, factors, reduction)

        from .streamed import streamed  # here, so that this file works alone

        least_cosine = rescaling.least_cosine(torch.finfo(dtype).eps if epsilon is None else epsilon)
        return _uncompiled(streamed)(
            embeddings,
            class_weight,
            labels,
            rescaling,
            factors,
            reduction,
            least_cosine,
            block_size,
            screened=screened,
            compiled=compiled,
            shard=shard,
        )


def _plain(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
    rescaling: Rescaling,
    factors: Tensor,
    reduction: Reduction,
) -> SFaceResult:
    unit_embeddings, _ = normalise(embeddings)
    unit_prototypes, _ = normalise(class_weight)
    cosines = product(unit_embeddings, unit_prototypes).clamp(-1, 1)
    is_target = labels[:, None] == torch.arange(len(class_weight), device=labels.device)
    target_cosines = cosines.gather(1, labels[:, None])[:, 0]

    with torch.no_grad():  # both r are constants for the gradient
        theta = torch.acos(cosines)
        r_intra = rescaling.of_classes(labels).pull(theta.gather(1, labels[:, None])[:, 0])
        r_inter = rescaling.push(theta).masked_fill(is_target, 0)

    intra_loss = reduced(-r_intra * target_cosines, factors, reduction)
    inter_loss = reduced((r_inter * cosines).sum(1), factors, reduction)

    cosines, target_cosines = cosines.detach(), target_cosines.detach()
    other_cosines = cosines.masked_fill(is_target, 0)
    nearest_other = cosines.masked_fill(is_target, -1).amax(1)
    return SFaceResult(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss.detach(),
        inter_loss=inter_loss.detach(),
        target_cosine=target_cosines.mean(),
        other_cosine=other_cosines.sum() / (len(labels) * (len(class_weight) - 1)),
        accuracy=(target_cosines >= nearest_other).to(cosines.dtype).mean(),
        target_cosines=target_cosines,
        cosines=cosines,
    )


class SFaceHead(nn.Module):
    """Prototypes of all classes and the SFace loss on them; the options are those of `sface_loss`.

    `class_weight` (num_classes, embedding_size) starts normal with standard deviation sqrt(2 / num_classes).
    `rescale` changes the five numbers, between any two steps.

    >>> head = SFaceHead(embedding_size=64, num_classes=10)
    >>> result = head(torch.randn(8, 64), torch.arange(8))
    >>> result.loss.backward()
    >>> tuple(head.class_weight.grad.shape)
    (10, 64)
    >>> head.rescale(intra_center=0.9, inter_center=1.25)
    >>> head
    SFaceHead(64, 10, scale=64.0, intra_slope=80.0, inter_slope=80.0, intra_center=0.9, inter_center=1.25)
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
        intra_center: float | Tensor = 0.87,
        inter_center: float | Tensor = 1.2,
        reduction: Reduction = "mean",
        form: Form = "streamed",
        block_size: int | None = None,
        epsilon: float | None = None,
        screened: bool | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.rescaling = Rescaling(scale, intra_slope, inter_slope, intra_center, inter_center)
        check_options(form, reduction, block_size, epsilon)
        check_centers(self.rescaling, num_classes, form)
        self.class_weight = nn.Parameter(torch.randn(num_classes, embedding_size) * (2 / num_classes) ** 0.5)
        self.reduction: Reduction = reduction
        self.form: Form = form
        self.block_size = block_size
        self.epsilon = epsilon
        self.screened = screened
        self.compiled = compiled

    def rescale(self, **numbers: float | Tensor) -> None:
        """Change some of scale, intra_slope, inter_slope, intra_center, inter_center; nothing is compiled anew."""
        self.rescaling = dataclasses.replace(self.rescaling, **numbers)

    def forward(self, embeddings: Tensor, labels: Tensor, sample_weight: Tensor | None = None) -> SFaceResult:
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
            screened=self.screened,
            compiled=self.compiled,
            shard=self.shard,
        )

    def extra_repr(self) -> str:
        num_classes, embedding_size = self.class_weight.shape
        numbers = ", ".join(f"{name}={value}" for name, value in vars(self.rescaling).items())
        return f"{embedding_size}, {num_classes}, {numbers}"


def _like(theta: Tensor, center: float | Tensor) -> float | Tensor:
    return center.to(theta) if isinstance(center, Tensor) else center


def reduced(losses: Tensor, factors: Tensor, reduction: Reduction) -> Tensor:
    """The samples' losses (N,) times `factors` (N,), which hold the 1 / N of a mean; summed unless "none"."""
    weighted = losses * factors
    return weighted if reduction == "none" else weighted.sum()


def normalise(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, D), and the norms (N, 1) that they were divided by, which are at least NORM_FLOOR."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(NORM_FLOOR)
    return vectors / norms, norms


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T of (N, D) and (C, D), in full float32 also where the matmul precision is set to less."""
    return left @ right.T if _is_full() else _FullProduct.apply(left, right)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products inside are computed in float32, not in TF32 or bfloat16, whatever is set elsewhere."""
    if _is_full():
        yield
        return
    before = [settings.fp32_precision for settings in _PRODUCTS]
    try:
        for settings in _PRODUCTS:
            settings.fp32_precision = "ieee"
        yield
    finally:
        for settings, value in zip(_PRODUCTS, before, strict=True):
            settings.fp32_precision = value


_PRODUCTS = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


def _is_full() -> bool:
    return all(settings.fp32_precision in ("none", "ieee") for settings in _PRODUCTS)


class _FullProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, right: Tensor) -> Tensor:
        with full_precision():
            return left @ right.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        return product(grad, right.T), product(grad.T, left.T)


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which depends on values, outside of torch.compile. As a decorator it would load the compiler."""
    return torch.compiler.disable(function) if torch.compiler.is_compiling() else function


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
        if isinstance(value, Tensor) and value.ndim:
            if form == "streamed":
                raise ValueError(f'{name}: expected one number, got {tuple(value.shape)}; use form="plain"')
            if value.shape != (num_classes,):
                raise ValueError(f"{name}: expected a number, or ({num_classes},) of them, got {tuple(value.shape)}")


def check_inputs(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
    sample_weight: Tensor | None = None,
    *,
    num_classes: int | None = None,
) -> None:
    """Raise a ValueError that says what was expected and what came; see `sface_loss`."""
    num_classes = len(class_weight) if num_classes is None else num_classes
    if embeddings.ndim != 2 or class_weight.ndim != 2 or embeddings.shape[1] != class_weight.shape[1]:
        raise ValueError(
            "expected embeddings (N, D) and class_weight (C, D) with the same D, "
            f"got {tuple(embeddings.shape)} and {tuple(class_weight.shape)}"
        )
    if len(embeddings) == 0 or num_classes < 2:
        raise ValueError(f"expected at least 1 sample and 2 classes, got {len(embeddings)} and {num_classes}")
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels: expected a tensor, got {type(labels).__name__}; torch.as_tensor makes one")
    if labels.shape != embeddings.shape[:1] or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"labels: expected int64 or int32 ({len(embeddings)},), got {labels.dtype} {tuple(labels.shape)}; "
            "labels.long() converts numbers of classes"
        )
    if sample_weight is not None and sample_weight.shape != labels.shape:
        raise ValueError(f"sample_weight: expected ({len(embeddings)},), got {tuple(sample_weight.shape)}")
    if labels.device.type == "cpu":
        _uncompiled(_check_values)(labels, num_classes)


def _check_values(labels: Tensor, num_classes: int) -> None:
    while torch._C._functorch.is_functorch_wrapped_tensor(labels):  # torch.func and vmap hide the values
        labels = torch._C._functorch.get_unwrapped(labels)
    bad = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(bad):
        value = int(labels[tuple(bad[0])])
        raise ValueError(f"labels: expected 0..{num_classes - 1}, got {value} at row {int(bad[0, -1])}")
