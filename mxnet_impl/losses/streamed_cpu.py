"""The streamed form (`streamed.py`) on the CPU: only the entries that matter, gradients as sparse products.

Written in NumPy and SciPy, on the memory of the MXNet arrays: to sum (256, 1024) numbers, to find their maxima or to
compare them takes MXNet 1.9.1 ten to forty times as long, together as long as the product that gave them.

Each block of prototypes is read once forward and, where something in it matters, once backward:

    cos[i,j] = (x^_i . w_j) / ||w_j||                       needs no normalised copy of the prototypes
    dL/dw_j  = sum_i h[i,j] x^_i - radial_j w_j             h[i,j] = g[i,j] / ||w_j||
    radial_j = sum_i h[i,j] cos[i,j] / ||w_j||              needs no product; 0 where ||w_j|| is at the floor
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import mxnet as mx
import numpy as np
from mxnet import autograd, nd
from mxnet.ndarray import NDArray
from scipy.sparse import csr_matrix

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero
DENSE_FROM = 0.1  # share of the entries; sparse is faster up to 0.3, but takes 8 bytes an entry until the backward pass
GROUP_SIZE = 65536  # entries whose weights are computed at once


def streamed_on_cpu(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    r_intra: Callable[[NDArray], NDArray],
    r_inter: Callable[[NDArray], NDArray],
    least_cosine: float,
    block_size: int,
) -> tuple[NDArray, ...]:
    """See `streamed.streamed`."""
    with autograd.pause():
        operator = _Operator(labels.asnumpy(), r_intra, r_inter, least_cosine, block_size)
        loss, *metrics = [
            nd.array([value], embeddings.context, embeddings.dtype) for value in operator.run(embeddings, class_weight)
        ]
    if not autograd.is_recording():
        return loss, *metrics
    _operators[key := str(id(operator))] = operator
    return nd.Custom(embeddings, class_weight, op_type="sface_streamed", key=key), *metrics


class _Group(NamedTuple):
    """What the sparse ones among consecutive blocks need for the backward pass."""

    first: int
    last: int
    h: csr_matrix  # (classes, N)
    radial: np.ndarray  # (classes,)


class _Pass:
    """`run` gives the results and keeps what `gradients` needs."""

    def __init__(
        self,
        labels: np.ndarray,
        r_intra: Callable[[NDArray], NDArray],
        r_inter: Callable[[NDArray], NDArray],
        least_cosine: float,
        block_size: int,
    ) -> None:
        self.labels = labels
        self.r_intra, self.r_inter = r_intra, r_inter
        self.least_cosine = least_cosine
        self.block_size = block_size
        self.groups: list[_Group] = []
        self.dense_blocks: set[int] = set()  # first class of each
        self.inter_sum = 0.0

    def run(self, embeddings: np.ndarray, class_weight: np.ndarray) -> tuple[float, ...]:
        """loss, intra_loss, inter_loss, target_cosine, other_cosine, accuracy."""
        batch_size, num_classes = len(embeddings), len(class_weight)
        self.embedding_norms = _norms(embeddings)[:, None]
        self.unit_embeddings = embeddings / self.embedding_norms
        own_prototypes = class_weight[self.labels]
        own_prototypes /= _norms(own_prototypes)[:, None]
        self.target_cosines = np.einsum("ij,ij->i", self.unit_embeddings, own_prototypes).clip(-1, 1)
        pull = _weights(self.r_intra, self.target_cosines)
        self.target_g = -pull / batch_size

        cosine_sum = 0.0
        nearest_other = np.full_like(self.target_cosines, -1)
        norms = np.empty(num_classes, class_weight.dtype)
        buffer = self._buffer(num_classes)
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, class_weight.dtype))
        found, found_from = [nothing], 0
        for first, last in self._blocks(0, num_classes):
            cosines, norms[first:last] = self._cosines(class_weight[first:last], buffer)
            targets = self._targets(first, last)
            cosine_sum += float(cosines.sum()) - float(cosines[targets].sum())
            cosines[targets] = -1  # no other is less
            np.maximum(nearest_other, cosines.max(1), out=nearest_other)
            cosines[targets] = self.target_cosines[targets[0]]

            left_out = cosines < self.least_cosine  # which NaN is not: a diverged run must show
            left_out[targets] = False
            entries = np.flatnonzero(~left_out)
            if len(entries) < DENSE_FROM * cosines.size:
                samples, columns = np.divmod(entries, last - first)
                found.append((first + columns, samples, cosines.reshape(-1)[entries].clip(-1, 1)))
            else:
                self.dense_blocks.add(first)
                push, _ = self._dense(cosines, targets)
                self.inter_sum += float(np.vdot(push, cosines))
            if last == num_classes or sum(len(entry[0]) for entry in found) >= GROUP_SIZE:
                self.groups.append(self._group(found_from, last, found, norms[found_from:last]))
                found, found_from = [nothing], last

        intra_loss = float(np.mean(-pull * self.target_cosines))
        inter_loss = self.inter_sum / batch_size
        return (
            intra_loss + inter_loss,
            intra_loss,
            inter_loss,
            float(self.target_cosines.mean()),
            cosine_sum / (batch_size * (num_classes - 1)),
            float(np.mean(self.target_cosines >= nearest_other.clip(-1, 1))),
        )

    def gradients(
        self, class_weight: np.ndarray, grad_class_weight: np.ndarray | None, factor: np.floating, *, add: bool
    ) -> np.ndarray:
        """Write or add that of class_weight; return that of the embeddings; both times the factor."""
        grad_unit = np.zeros_like(self.unit_embeddings)
        scaled_embeddings = factor * self.unit_embeddings
        scratch = np.empty((min(self.block_size, len(class_weight)), class_weight.shape[1]), class_weight.dtype)
        for first, last, rows, h, radial in self._factors(class_weight):
            prototypes = class_weight[first:last][rows]
            grad_unit += h.T @ prototypes
            if grad_class_weight is None:
                continue
            result = h @ scaled_embeddings
            result -= np.multiply((factor * radial)[:, None], prototypes, out=scratch[: len(result)])
            grad = grad_class_weight[first:last]
            if add:
                grad[rows] += result
            else:
                if len(result) < len(grad):
                    grad[:] = 0
                grad[rows] = result
        return factor * _through_normalisation(grad_unit, self.unit_embeddings, self.embedding_norms)

    def _factors(self, class_weight: np.ndarray) -> Iterator[tuple]:
        """Each block with the rows in which something is active, and their h and radial."""
        buffer = self._buffer(len(class_weight)) if self.dense_blocks else np.empty(0)
        for group in self.groups:
            for first, last in self._blocks(group.first, group.last):
                if first in self.dense_blocks:
                    cosines, norms = self._cosines(class_weight[first:last], buffer)
                    targets = self._targets(first, last)
                    cosines[targets] = self.target_cosines[targets[0]]
                    _, g = self._dense(cosines, targets)
                    h = np.divide(g, norms, out=g)
                    yield first, last, slice(None), h.T, _radial(np.einsum("ij,ij->j", h, cosines), norms)
                else:
                    block = slice(first - group.first, last - group.first)
                    rows, h = _rows_in_use(group.h, block)
                    yield first, last, rows, h, group.radial[block][rows]

    def _blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + self.block_size, last)) for start in range(first, last, self.block_size))

    def _buffer(self, num_classes: int) -> np.ndarray:
        return np.empty(len(self.labels) * min(self.block_size, num_classes), self.unit_embeddings.dtype)

    def _cosines(self, prototypes: np.ndarray, buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines, not clipped, and norms; a normalised copy of the prototypes is not needed."""
        norms = _norms(prototypes)
        cosines = buffer[: len(self.labels) * len(prototypes)].reshape(-1, len(prototypes))
        np.matmul(self.unit_embeddings, prototypes.T, out=cosines)
        cosines /= norms
        return cosines, norms

    def _targets(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples whose own class is in a block, and the columns of those classes."""
        samples = np.flatnonzero((self.labels >= first) & (self.labels < last))
        return samples, self.labels[samples] - first

    def _dense(self, cosines: np.ndarray, targets: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """r_inter and g of a block; clips the cosines."""
        np.clip(cosines, -1, 1, out=cosines)
        push = _weights(self.r_inter, cosines)
        push[targets] = 0
        g = push / len(self.labels)
        g[targets] = self.target_g[targets[0]]
        return push, g

    def _group(self, first: int, last: int, found: list[tuple[np.ndarray, ...]], norms: np.ndarray) -> _Group:
        """Together, because a call of MXNet takes as long for a few entries as for thousands."""
        classes, samples, cosines = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        push = _weights(self.r_inter, cosines)
        is_target = self.labels[samples] == classes
        push[is_target] = 0
        self.inter_sum += float(push @ cosines)
        rows = classes - first
        h = np.where(is_target, self.target_g[samples], push / len(self.labels)) / norms[rows]
        return _Group(
            first,
            last,
            csr_matrix((h, (rows, samples)), (last - first, len(self.labels))),
            _radial(np.bincount(rows, h * cosines, last - first).astype(h.dtype), norms),
        )


def _radial(sums: np.ndarray, norms: np.ndarray) -> np.ndarray:
    return sums * (norms > NORM_FLOOR) / norms


def _rows_in_use(matrix: csr_matrix, rows: slice) -> tuple[np.ndarray | slice, csr_matrix]:
    """Which of the rows hold something, or all where most do, and a matrix of these alone, which shares its memory."""
    starts = matrix.indptr[rows.start : rows.stop + 1]
    here = slice(starts[0], starts[-1])
    starts = starts - starts[0]
    used: np.ndarray | slice = np.flatnonzero(np.diff(starts))
    if 4 * len(used) > len(starts):
        used = slice(None)  # to leave out a few rows takes longer
    starts = np.append(starts[:-1][used], starts[-1])
    return used, csr_matrix((matrix.data[here], matrix.indices[here], starts), (len(starts) - 1, matrix.shape[1]))


class _Operator(mx.operator.CustomOp):
    """A pass, whose gradients it writes where MXNet holds them.

    Not an autograd.Function, which would hold a second gradient of class_weight; and that of MXNet 1.9.1 drops the
    gradients of all inputs after one that needs none, and those of grad_req "add".
    """

    def __init__(self, *parameters: Any) -> None:
        super().__init__()
        self.parameters = parameters

    def run(self, embeddings: NDArray, class_weight: NDArray) -> tuple[float, ...]:
        self.current: _Pass | None = _Pass(*self.parameters)
        self.results = self.current.run(memory(embeddings), memory(class_weight))
        return self.results

    def forward(self, is_train, req, in_data, out_data, aux) -> None:
        self.assign(out_data[0], req[0], self.results[0])

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux) -> None:
        if self.current is None:  # not the first time
            self.run(*in_data)
        grad_class_weight = None if req[1] == "null" else memory(in_grad[1])
        grad_embeddings = self.current.gradients(
            memory(in_data[1]), grad_class_weight, out_grad[0].asscalar(), add=req[1] == "add"
        )
        self.assign(in_grad[0], req[0], nd.array(grad_embeddings, in_grad[0].context, grad_embeddings.dtype))
        self.current = None  # MXNet's operators are in reference cycles: this one may stay until they are collected


# MXNet hands strings to an operator
_operators: WeakValueDictionary[str, _Operator] = WeakValueDictionary()


@mx.operator.register("sface_streamed")
class _OperatorProp(mx.operator.CustomOpProp):
    def __init__(self, key: str) -> None:
        super().__init__(need_top_grad=True)
        self.operator = _operators[key]

    def list_arguments(self) -> list[str]:
        return ["embeddings", "class_weight"]

    def infer_shape(self, in_shape):
        return in_shape, [(1,)], []

    def create_operator(self, ctx, in_shapes, in_dtypes) -> _Operator:
        return self.operator


class _Exporter:
    """What `numpy.from_dlpack` asks of an array; that of MXNet 1.9.1 has the same under another name."""

    def __init__(self, array: NDArray) -> None:
        self.array = array

    def __dlpack__(self, stream: None = None) -> object:
        return self.array.to_dlpack_for_write()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


def memory(array: NDArray) -> np.ndarray:
    """The elements of an array on the CPU where they lie, to read and to write."""
    view = np.from_dlpack(_Exporter(array))
    interface = view.__array_interface__ | {"data": (view.ctypes.data, False)}  # from_dlpack makes it read-only
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=view))


def _weights(weight: Callable[[NDArray], NDArray], cosines: np.ndarray) -> np.ndarray:
    if not len(cosines):
        return cosines
    theta = nd.array(np.arccos(cosines), mx.cpu(), cosines.dtype)
    return weight(theta).asnumpy()


def _through_normalisation(grad_unit: np.ndarray, unit: np.ndarray, norms: np.ndarray) -> np.ndarray:
    radial = np.sum(grad_unit * unit, axis=1, keepdims=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / norms


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), NORM_FLOOR)
