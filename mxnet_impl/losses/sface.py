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
matrix; `streamed.py`). This file can be copied with that one and `streamed_cpu.py`; they need MXNet and SciPy.
"""

import math
from functools import partial
from typing import Literal, NamedTuple

from mxnet import gluon, init, nd
from mxnet.ndarray import NDArray

from mxnet_impl.losses.streamed import _accuracy, _largest_other, _normalise, streamed

Form = Literal["plain", "streamed"]

_MACHINE_EPSILON = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


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
    block_size: int | None = None,
    epsilon: float | None = None,
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
            None: 2048, so that a block stays in a processor's cache; on a CUDA device enough for 2**24 entries.
        epsilon: on the CPU the streamed form leaves out pushes with r_inter < scale * epsilon. 0: none. None: machine
            epsilon of the dtype (float32: 1.2e-7; float64: 2.2e-16, whose cut lies beyond 90 degrees).

    What is left out moves r_inter[i,j] / N by less than s epsilon / N, so inter_loss by less than s epsilon (C - 1),
    dL/dx_i by less than s epsilon (C - 1) / (N ||x_i||) and dL/dw_j by less than s epsilon / ||w_j||.

    Raises:
        ValueError: shapes do not fit, epsilon is outside [0, 1), or a label is out of range (checked on the CPU only:
            on a CUDA device the check would make the host wait at every step; there a wrong label picks the nearest
            class).
    """
    _check(embeddings, class_weight, labels, epsilon)
    parameters = (scale, intra_slope, inter_slope, intra_center, inter_center)
    if form == "plain":
        return _plain(embeddings, class_weight, labels, *parameters)
    if form == "streamed":
        results = streamed(
            embeddings,
            class_weight,
            labels,
            partial(intra_weight, scale=scale, slope=intra_slope, center=intra_center),
            partial(inter_weight, scale=scale, slope=inter_slope, center=inter_center),
            least_cosine=_least_cosine(
                _MACHINE_EPSILON[class_weight.dtype.__name__] if epsilon is None else epsilon, inter_slope, inter_center
            ),
            block_size=block_size,
        )
        return SFaceResult(*results)
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
        epsilon: float | None = None,
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
        self.epsilon = epsilon

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
            epsilon=self.epsilon,
        )


def _least_cosine(epsilon: float, slope: float, center: float) -> float:
    """Cosine of the angle from which r_inter < scale * epsilon; -inf where there is none."""
    if epsilon == 0:
        return -math.inf
    angle = center + math.log(1 / epsilon - 1) / slope
    return math.cos(max(angle, 0)) if angle < math.pi else -math.inf


def _check(embeddings: NDArray, class_weight: NDArray, labels: NDArray, epsilon: float | None) -> None:
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
    if epsilon is not None and not 0 <= epsilon < 1:
        raise ValueError(f"epsilon: expected 0 <= epsilon < 1, or None, got {epsilon}")
    if labels.context.device_type == "cpu":
        values = labels.asnumpy()
        bad = ((values < 0) | (values >= num_classes)).nonzero()[0]
        if len(bad):
            raise ValueError(f"labels: expected 0..{num_classes - 1}, got {values[bad[0]]} at row {bad[0]}")
