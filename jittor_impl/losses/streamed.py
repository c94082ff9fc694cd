"""A loss whose classes are independent, with both gradients, in one pass over blocks of classes, in Jittor.

For unit vectors x^ = x / ||x|| of the embeddings and w^ = w / ||w|| of the prototypes, cos = x^ . w^ and weights r that
are constants for the gradient, with labels y:

    loss   = mean_i( -r_intra(theta[i,y_i]) cos[i,y_i]  +  sum_{j != y_i} r_inter(theta[i,j]) cos[i,j] )
    g[i,j] = r_inter(theta[i,j]) / N for j != y_i,           g[i,y_i] = -r_intra(theta[i,y_i]) / N
    dL/dx_i = ( u_i - (u_i . x^_i) x^_i ) / ||x_i||          u_i = sum_j g[i,j] w^_j
    dL/dw_j = ( v_j - (v_j . w^_j) w^_j ) / ||w_j||          v_j = sum_i g[i,j] x^_i

On a CUDA device each block is computed densely, in Jittor's operators. On the CPU two operators in C++, their loops
shared by the threads, go over a block: the first makes the cosines and lists the active entries, those of at least
`least_cosine`; r_inter of these comes from Jittor; the second adds what they give to the gradients. A block with too
many of them is multiplied densely there too. Matrix products are oneDNN's, in float64 or without oneDNN plain loops. A
thread's share of the work is fixed and no sum depends on the number of threads (oneDNN's own in a dense block may).

This file and `streamed.cc` beside it need Jittor only and can be copied.
"""

from collections.abc import Callable
from pathlib import Path

import jittor as jt
from jittor import Var, nn

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero

# Above this share of active entries a block is multiplied densely. An estimate from timings with one thread, N 256, D
# 512: an active entry of a list took 0.6 to 1.9 us, any entry of a dense block 0.09 us.
_DENSE_SHARE = 0.06

_Weight = Callable[[Var], Var]


def streamed(
    embeddings: Var,
    class_weight: Var,
    labels: Var,
    r_intra: _Weight,
    r_inter: _Weight,
    *,
    least_cosine: float,
    block_size: int | None = None,
) -> tuple[Var, ...]:
    """Loss, differentiable once with respect to embeddings and class_weight, and what to log of a step.

    Args:
        embeddings: raw, in the dtype of class_weight, (N, D).
        class_weight: raw, (C, D).
        labels: 0..C-1, int32 or int64, (N,).
        r_intra: weights of the samples' own classes as a function of theta, radians, any shape.
        r_inter: the same of other classes.
        least_cosine: on the CPU r_inter of lower cosines counts as 0; -1: none.
        block_size: classes a block; O(N * block_size) memory is needed beside the inputs and gradients. None: 2048, so
            that a block stays in a processor's cache; on a CUDA device as many as give a block 2**24 entries.

    Returns:
        loss, intra_loss, inter_loss, target_cosine, other_cosine, accuracy: scalars, all but the first detached.
    """
    if block_size is None:
        block_size = max(1, 2**24 // labels.shape[0]) if _on_gpu() else 2048
    function = _Streamed()
    loss = function(embeddings, class_weight, labels, r_intra, r_inter, least_cosine, block_size)
    return loss, *function.metrics


class _Streamed(jt.Function):
    """Computes the gradients with the loss, as Jittor has it: `grad` only hands them out."""

    def execute(
        self,
        embeddings: Var,
        class_weight: Var,
        labels: Var,
        r_intra: _Weight,
        r_inter: _Weight,
        least_cosine: float,
        block_size: int,
    ) -> Var:
        embeddings, class_weight, labels = embeddings.detach(), class_weight.detach(), labels.detach()
        batch_size, num_classes = embeddings.shape[0], class_weight.shape[0]
        unit_embeddings, embedding_norms = _normalise(embeddings)
        target_cosines = (unit_embeddings * _normalise(class_weight[labels])[0]).sum(1).clamp(-1, 1)
        pulls = r_intra(jt.arccos(target_cosines))

        sums = _Sums(unit_embeddings, target_cosines)
        if _on_gpu():
            self.grad_class_weight = _dense_blocks(sums, class_weight, labels, pulls, r_inter, block_size)
        else:
            self.grad_class_weight = _listed_blocks(
                sums, class_weight, labels, pulls, r_inter, block_size, least_cosine
            )
        self.grad_embeddings = _through_normalisation(sums.grad_unit_embeddings, unit_embeddings, embedding_norms)

        intra_loss = _mean(-pulls * target_cosines)
        inter_loss = sums.inter / _number(batch_size, sums.inter)
        other_cosine = sums.cosine / _number(batch_size * (num_classes - 1), sums.cosine)
        accuracy = _accuracy(sums.nearer_others)
        self.metrics = intra_loss, inter_loss, target_cosines.mean(), other_cosine, accuracy
        return intra_loss + inter_loss

    def grad(self, grad_loss: Var) -> tuple[Var | None, ...]:
        gradients = self.grad_embeddings, self.grad_class_weight
        # a product with 1 would need a second gradient's memory; a CUDA device should not be waited for
        if _on_gpu() or grad_loss.item() != 1:
            gradients = grad_loss * gradients[0], grad_loss * gradients[1]
        return *gradients, *[None] * 5


class _Sums:
    """What the blocks add to: all of one dtype."""

    def __init__(self, unit_embeddings: Var, target_cosines: Var) -> None:
        self.unit_embeddings = unit_embeddings
        self.target_cosines = target_cosines
        self.grad_unit_embeddings = jt.zeros_like(unit_embeddings)  # u
        self.inter = jt.zeros((1,), unit_embeddings.dtype)  # of r_inter cos
        self.cosine = jt.zeros((1,), unit_embeddings.dtype)  # of cos, without the targets
        self.nearer_others = jt.zeros((len(unit_embeddings),), unit_embeddings.dtype)  # 0: the target is nearest


def _listed_blocks(
    sums: _Sums, class_weight: Var, labels: Var, pulls: Var, r_inter: _Weight, block_size: int, least_cosine: float
) -> Var:
    """Adds to `sums`, in place, and returns the gradient for class_weight.

    The operators write to some of their inputs, which is safe as each has run before the next is noted down.
    """
    batch_size, num_classes = len(labels), class_weight.shape[0]
    dtype, block_size = class_weight.dtype, min(block_size, num_classes)
    loops = Path(__file__).with_suffix(".cc").read_text("utf-8")
    header = f"#define ONEDNN {int(jt.compile_extern.use_mkl)}\n#define NORM_FLOOR {NORM_FLOOR!r}\n{loops}"
    x, turned = sums.unit_embeddings, sums.unit_embeddings.transpose().clone()
    labels = labels.int32()
    grad_class_weight = jt.empty(class_weight.shape, dtype)
    nearest_other = jt.full((batch_size,), -4, dtype)
    added_to = grad_class_weight, sums.grad_unit_embeddings, sums.inter

    for first in range(0, num_classes, block_size):
        size = min(block_size, num_classes - first)
        data = {"first": first, "least": least_cosine, "dense_share": _DENSE_SHARE}
        cosines, samples, counts, norms = jt.code(
            [(-size * batch_size,), (size * batch_size,), (size,), (size,)],
            [dtype, "int32", "int32", dtype],
            [turned, class_weight, labels, sums.cosine, nearest_other, grad_class_weight],
            cpu_header=header,
            cpu_src="""
            const int64_t first = data["first"], d = in0_shape0, n = in0_shape1;
            out0->set_shape({screen(out2_shape0, first, n, d, data["least"], data["dense_share"], in0_p,
                in1_p + first * d, in2_p, out3_p, out0_p, out1_p, out2_p, in3_p, in4_p, in5_p + first * d)});
            """,
            data=data,
        )
        cosines.sync()  # only now its length is known; and what runs late would be in memory all at once
        pushes = r_inter(jt.arccos(cosines.clamp(-1, 1)))
        done = jt.code(
            (1,),
            "int32",
            [x, class_weight, labels, norms, cosines, samples, counts, pushes, sums.target_cosines, pulls, *added_to],
            cpu_header=header,
            cpu_src="""
            const int64_t first = data["first"], n = in0_shape0, d = in0_shape1, size = in3_shape0;
            push(in7_shape0 == size * n, size, n, d, in0_p, in1_p + first * d, in3_p, in4_p, in5_p, in6_p, in7_p,
                in10_p + first * d, in11_p, in12_p);
            pull(size, first, n, d, in0_p, in1_p + first * d, in2_p, in3_p, in8_p, in9_p, in10_p + first * d, in11_p);
            """,
            data=data,
        )
        done.sync()
    sums.cosine = sums.cosine - sums.target_cosines.sum()
    sums.nearer_others = 1 - (nearest_other <= sums.target_cosines).cast(dtype)
    return grad_class_weight


def _dense_blocks(sums: _Sums, class_weight: Var, labels: Var, pulls: Var, r_inter: _Weight, block_size: int) -> Var:
    """Adds to `sums` and returns the gradient for class_weight."""
    batch_size, num_classes = len(labels), class_weight.shape[0]
    gradients, inter, cosine = [], jt.zeros_like(sums.target_cosines), jt.zeros_like(sums.target_cosines)
    for first in range(0, num_classes, block_size):
        last = min(first + block_size, num_classes)
        unit_prototypes, norms = _normalise(class_weight[first:last])
        cosines = nn.matmul_transpose(sums.unit_embeddings, unit_prototypes).clamp(-1, 1)
        is_target = (labels.unsqueeze(1) == jt.arange(first, last)).cast(cosines.dtype)
        pushes = r_inter(jt.arccos(cosines)) * (1 - is_target)

        g = (pushes - is_target * pulls.unsqueeze(1)) / _number(batch_size, pushes)
        sums.grad_unit_embeddings = sums.grad_unit_embeddings + jt.matmul(g, unit_prototypes)
        grad_unit_prototypes = _transposed_product(g, sums.unit_embeddings)
        gradients.append(_through_normalisation(grad_unit_prototypes, unit_prototypes, norms))

        inter = inter + _row_sums(pushes * cosines)
        cosine = cosine + _row_sums(cosines * (1 - is_target))
        sums.nearer_others = sums.nearer_others + _nearer_others(cosines, sums.target_cosines, is_target)
        # execution is lazy: without this, all blocks would be in memory at once
        jt.sync([inter, cosine, sums.nearer_others, sums.grad_unit_embeddings, gradients[-1]])
    sums.inter, sums.cosine = inter.sum(), cosine.sum()
    return jt.concat(gradients)


def _transposed_product(a: Var, b: Var) -> Var:
    """a' b, which Jittor recognises as a product of matrices; a transpose of its own would run on the host."""
    shape = [*a.shape, b.shape[1]]
    return (a.broadcast(shape, [2]) * b.broadcast(shape, [1])).sum(0)


def _row_sums(values: Var) -> Var:
    """As a product, which on a CUDA device takes a quarter of the time of Jittor's own sums."""
    return jt.matmul(values, jt.ones((values.shape[1], 1), values.dtype)).squeeze(1)


def _on_gpu() -> bool:
    return bool(jt.flags.use_cuda)


def _number(value: float, like: Var) -> Var:
    """A number in the dtype of `like`: as a Python number it would be rounded to float32, also beside float64."""
    return jt.array(value, like.dtype)


def _mean(values: Var) -> Var:
    """A mean whose gradient does not have 1 / n rounded to float32, as that of Var.mean has."""
    return values.sum() / _number(values.numel(), values)


def _normalise(vectors: Var) -> tuple[Var, Var]:
    """Rows divided by their norms, and these, (rows, 1)."""
    # the floor comes before the root, whose slope at 0 is infinite
    norms = jt.sqrt(jt.maximum((vectors * vectors).sum(1, keepdims=True), _number(NORM_FLOOR**2, vectors)))
    return vectors / norms, norms


def _through_normalisation(grad_unit: Var, unit: Var, norms: Var) -> Var:
    """Gradient for v, given the gradient for v / max(||v||, floor): below the floor that is a plain division."""
    radial = (grad_unit * unit).sum(1, keepdims=True) * (norms > _number(NORM_FLOOR, norms))
    return (grad_unit - radial * unit) / norms


def _nearer_others(cosines: Var, target_cosines: Var, is_target: Var) -> Var:
    """How many other classes each sample is nearer to than to its own; all of them where that is not a number."""
    is_farther = (cosines <= target_cosines.unsqueeze(1)).cast(cosines.dtype)
    return _row_sums((1 - is_farther) * (1 - is_target))


def _accuracy(nearer_others: Var) -> Var:
    """Share of samples to which no other prototype is nearer than their own."""
    return (nearer_others == 0).cast(nearer_others.dtype).mean()
