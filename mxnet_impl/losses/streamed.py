"""A loss over all classes in one pass over blocks of them, with both gradients and no (N, C) matrix; in MXNet.

For any loss whose classes are independent. With x^, w^, y, theta and cos as in `sface_loss.py`, and weights r that are
constants for the gradient:

    loss = mean_i( -r_intra(theta[i,y_i]) cos[i,y_i]  +  sum_{j != y_i} r_inter(theta[i,j]) cos[i,j] )
    g[i,j] = r_inter(theta[i,j]) / N  (j != y_i)        g[i,y_i] = -r_intra(theta[i,y_i]) / N
    dL/dx_i = (u_i - (u_i . x^_i) x^_i) / ||x_i||       u_i = sum_j g[i,j] w^_j
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||       v_j = sum_i g[i,j] x^_i

On a CUDA device every entry is computed: to find the few that matter, the host would have to wait for the device.
On the CPU the others are left out (`streamed_cpu.py`).
"""

from collections.abc import Callable

from mxnet import autograd, nd
from mxnet.ndarray import NDArray

from mxnet_impl.losses.streamed_cpu import streamed_on_cpu

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero

_Weight = Callable[[NDArray], NDArray]


def streamed(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    r_intra: _Weight,
    r_inter: _Weight,
    *,
    least_cosine: float,
    block_size: int | None = None,
) -> tuple[NDArray, ...]:
    """Loss, intra_loss, inter_loss, target_cosine, other_cosine and accuracy, each (1,); only the loss has a gradient.

    Args:
        embeddings: raw backbone output, (N, D).
        class_weight: one prototype a class, (C, D); of the same dtype.
        labels: class of each sample, 0..C-1, int64, (N,).
        r_intra: weight of the pull at an angle; radians of any shape in, the same shape out.
        r_inter: weight of the push at an angle, likewise.
        least_cosine: on the CPU, pushes from prototypes at a smaller cosine are left out; -inf: none is.
        block_size: classes a block; None: 2048, so that a block stays in a processor's cache; on a CUDA device as many
            as give a block 2**24 entries, to keep it busy.

    Memory beside the inputs and what MXNet holds of their gradients: O(N * block_size); on the CPU also 8 bytes an
    entry that is not left out, where these are few; on a CUDA device one gradient of class_weight more.
    """
    arrays = embeddings, class_weight, labels
    if embeddings.context.device_type == "cpu":
        return streamed_on_cpu(*arrays, r_intra, r_inter, least_cosine, block_size or 2048)
    return _on_device(*arrays, r_intra, r_inter, block_size or max(1, 2**24 // len(labels)))


def _on_device(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    r_intra: _Weight,
    r_inter: _Weight,
    block_size: int,
) -> tuple[NDArray, ...]:
    """Every entry, without a wait of the host."""
    with autograd.pause():
        batch_size, num_classes = len(embeddings), len(class_weight)
        unit_embeddings, embedding_norms = _normalise(embeddings)

        own_prototypes, _ = _normalise(nd.take(class_weight, labels))
        target_cosines = nd.sum(unit_embeddings * own_prototypes, axis=1).clip(-1, 1)
        pull = r_intra(nd.arccos(target_cosines))
        intra_loss = nd.mean(-pull * target_cosines)

        inter_sum = nd.zeros_like(intra_loss)
        cosine_sum = nd.zeros_like(intra_loss)
        nearest_other = nd.ones_like(target_cosines) * -2
        grad_unit_embeddings = nd.zeros_like(embeddings)
        grad_class_weight = nd.empty(class_weight.shape, class_weight.context, class_weight.dtype)

        for first in range(0, num_classes, block_size):
            last = min(first + block_size, num_classes)
            unit_prototypes, prototype_norms = _normalise(class_weight[first:last])
            cosines = nd.dot(unit_embeddings, unit_prototypes, transpose_b=True).clip(-1, 1)
            is_target = nd.one_hot(labels - first, last - first, dtype=cosines.dtype)
            push = r_inter(nd.arccos(cosines)) * (1 - is_target)

            inter_sum += nd.sum(push * cosines)
            g = (push - is_target * pull.expand_dims(1)) / batch_size
            grad_unit_embeddings += nd.dot(g, unit_prototypes)
            grad_class_weight[first:last] = _through_normalisation(
                nd.dot(g, unit_embeddings, transpose_a=True), unit_prototypes, prototype_norms
            )

            cosine_sum += nd.sum(cosines * (1 - is_target))
            nearest_other = nd.maximum(nearest_other, _largest_other(cosines, is_target))

        grad_embeddings = _through_normalisation(grad_unit_embeddings, unit_embeddings, embedding_norms)
        inter_loss = inter_sum / batch_size
        loss = intra_loss + inter_loss
    return (
        loss + _zero_with_gradient(embeddings, grad_embeddings) + _zero_with_gradient(class_weight, grad_class_weight),
        intra_loss,
        inter_loss,
        nd.mean(target_cosines),
        cosine_sum / (batch_size * (num_classes - 1)),
        _accuracy(target_cosines, nearest_other),
    )


def _zero_with_gradient(variable: NDArray, gradient: NDArray) -> NDArray:
    """0 in value, `gradient` as its gradient for `variable`.

    Not an autograd.Function: that of MXNet 1.9.1 drops the gradients of all inputs after one that needs none, and those
    of parameters with grad_req "add".
    """
    product = nd.dot(variable.reshape(-1), gradient.reshape(-1))
    return product - product.detach()


def _normalise(vectors: NDArray) -> tuple[NDArray, NDArray]:
    # the floor under the root, not on it: the root has no gradient at 0
    norms = nd.sqrt(nd.maximum(nd.sum(vectors * vectors, axis=1, keepdims=True), NORM_FLOOR**2))
    return vectors / norms, norms


def _through_normalisation(grad_unit: NDArray, unit: NDArray, norms: NDArray) -> NDArray:
    """Gradient for v, given the gradient for v / max(||v||, floor): at the floor that is a plain division."""
    radial = nd.sum(grad_unit * unit, axis=1, keepdims=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / norms


def _largest_other(cosines: NDArray, is_target: NDArray) -> NDArray:
    return nd.max(cosines - 4 * is_target, axis=1)  # no cosine is below -1


def _accuracy(target_cosines: NDArray, nearest_other: NDArray) -> NDArray:
    return nd.mean(target_cosines >= nearest_other)
