"""A pass that computes only the entries whose push matters, on the CPU: part of the streamed form of SFace.

It is written in NumPy and SciPy, on the memory of the MXNet arrays. MXNet 1.9.1 takes ten to forty times as long to sum
(256, 1024) numbers, to find their maxima or to compare them; together that is as long as the product that gave them.

Each block of prototypes is read once forward and, where something in it matters, once backward:

    cos[i,j] = (x^_i . w_j) / ||w_j||                       needs no normalised copy of the prototypes
    dL/dw_j  = sum_i h[i,j] x^_i - radial_j w_j             h[i,j] = g[i,j] / ||w_j||
    radial_j = sum_i h[i,j] cos[i,j] / ||w_j||              needs no product; 0 where ||w_j|| is at the floor
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import NamedTuple

import mxnet as mx
import numpy as np
from mxnet import nd
from mxnet.ndarray import NDArray
from scipy.sparse import csr_matrix

from .dense import through_normalisation
from .sface import NORM_FLOOR, Reduction, Rescaling, SFaceResult, reduced

_DENSE_SHARE = 0.1  # of a block's entries; sparse is faster up to 0.3, but keeps 8 bytes an entry for the backward pass
_WAITING = 65536  # entries that are collected before their weights are computed


class _Group(NamedTuple):
    """What the backward pass needs of consecutive blocks, the dense ones among them apart."""

    first: int
    last: int
    h: csr_matrix  # (classes, N)
    radial: np.ndarray  # (classes,)


class SkippingPass:
    """Sums and gradients without the entries below `least_cosine`, except in blocks with many others.

    With `with_gradients`, `run` keeps what `gradients` needs.
    """

    def __init__(
        self,
        labels: np.ndarray,
        factors: np.ndarray,
        rescaling: Rescaling,
        least_cosine: float,
        block_size: int,
        *,
        with_gradients: bool = True,
    ) -> None:
        self.labels, self.factors, self.rescaling = labels, factors, rescaling
        self.least_cosine = least_cosine if least_cosine > -1 else -np.inf  # a cosine may round to less than -1
        self.block_size, self.with_gradients = block_size, with_gradients
        self.groups: list[_Group] = []
        self.dense_blocks: set[int] = set()  # first class of each
        self.kept: tuple[np.ndarray, ...] | None = None  # cosines, norms and g of the only block
        self.inter_losses = np.zeros(len(labels))  # each sample's

    def run(self, embeddings: np.ndarray, class_weight: np.ndarray) -> None:
        num_classes = len(class_weight)
        self.embedding_norms = _norms(embeddings)[:, None]
        self.unit_embeddings = embeddings / self.embedding_norms
        own_prototypes = class_weight[self.labels]
        own_prototypes /= _norms(own_prototypes)[:, None]
        self.target_cosines = np.einsum("ij,ij->i", self.unit_embeddings, own_prototypes).clip(-1, 1)
        self.r_intra = _at_cosines(self.rescaling.pull, self.target_cosines)
        self.target_g = -self.r_intra * self.factors

        cosine_sum = 0.0
        self.nearest_other = np.full_like(self.target_cosines, -1)
        norms = np.empty(num_classes, class_weight.dtype)
        buffer = self._buffer(num_classes)
        nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, class_weight.dtype))
        found, found_from = [nothing], 0
        for first, last in self._blocks(0, num_classes):
            cosines, norms[first:last] = self._cosines(class_weight[first:last], buffer)
            targets = self._targets(first, last)
            cosine_sum += float(cosines.sum()) - float(cosines[targets].sum())
            cosines[targets] = -1  # no other is less
            np.maximum(self.nearest_other, cosines.max(1), out=self.nearest_other)
            cosines[targets] = self.target_cosines[targets[0]]

            left_out = cosines < self.least_cosine  # which NaN is not: a diverged run must show
            left_out[targets] = False
            entries = np.flatnonzero(~left_out)
            if len(entries) < _DENSE_SHARE * cosines.size:
                samples, columns = np.divmod(entries, last - first)
                found.append((first + columns, samples, cosines.reshape(-1)[entries].clip(-1, 1)))
            else:
                self.dense_blocks.add(first)
                r_inter, g = self._dense(cosines, targets)
                self.inter_losses += np.einsum("ij,ij->i", r_inter, cosines)
                if self.with_gradients and last - first == num_classes:
                    self.kept = cosines, norms, g
            if last == num_classes or sum(len(entry[0]) for entry in found) >= _WAITING:
                self._add_group(found_from, last, found, norms[found_from:last])
                found, found_from = [nothing], last

        self.other_cosine = cosine_sum / (len(embeddings) * (num_classes - 1))

    def result(self, reduction: Reduction) -> SFaceResult:
        intra_loss = reduced(-self.r_intra * self.target_cosines, self.factors, reduction)
        inter_loss = reduced(self.inter_losses, self.factors, reduction)
        accuracy = np.mean(self.target_cosines >= self.nearest_other.clip(-1, 1))
        metrics = self.target_cosines.mean(), self.other_cosine, accuracy
        return SFaceResult(*_parts(intra_loss + inter_loss, intra_loss, inter_loss, *metrics, self.target_cosines))

    def gradients(
        self, class_weight: np.ndarray, grad_class_weight: np.ndarray | None, factor: np.ndarray | int, *, add: bool
    ) -> np.ndarray:
        """Write or add the gradient of class_weight, return that of the embeddings; both times the factor."""
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
        return factor * through_normalisation(grad_unit, self.unit_embeddings, self.embedding_norms)

    def _factors(self, class_weight: np.ndarray) -> Iterator[tuple]:
        """For each block: first and last class, the rows with entries, and their h and radial."""
        buffer = self._buffer(len(class_weight)) if self.dense_blocks else np.empty(0)
        for group in self.groups:
            for first, last in self._blocks(group.first, group.last):
                if first in self.dense_blocks:
                    cosines, norms, g = self.kept or self._again(class_weight[first:last], first, last, buffer)
                    h = g / norms
                    yield first, last, slice(None), h.T, _radial(np.einsum("ij,ij->j", h, cosines), norms)
                else:
                    block = slice(first - group.first, last - group.first)
                    rows, h = _rows_in_use(group.h, block)
                    yield first, last, rows, h, group.radial[block][rows]

    def _again(self, prototypes: np.ndarray, first: int, last: int, buffer: np.ndarray) -> tuple[np.ndarray, ...]:
        """Cosines, norms and g of a dense block."""
        cosines, norms = self._cosines(prototypes, buffer)
        targets = self._targets(first, last)
        cosines[targets] = self.target_cosines[targets[0]]
        return cosines, norms, self._dense(cosines, targets)[1]

    def _blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + self.block_size, last)) for start in range(first, last, self.block_size))

    def _buffer(self, num_classes: int) -> np.ndarray:
        return np.empty(len(self.labels) * min(self.block_size, num_classes), self.unit_embeddings.dtype)

    def _cosines(self, prototypes: np.ndarray, buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (N, classes), not clipped, and norms (classes,)."""
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
        r_inter = _at_cosines(self.rescaling.push, cosines)
        r_inter[targets] = 0
        g = r_inter * self.factors[:, None]
        g[targets] = self.target_g[targets[0]]
        return r_inter, g

    def _add_group(self, first: int, last: int, found: list[tuple[np.ndarray, ...]], norms: np.ndarray) -> None:
        """The entries of several blocks at once: a call of MXNet takes as long for a few as for thousands."""
        classes, samples, cosines = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        r_inter = _at_cosines(self.rescaling.push, cosines)
        is_target = self.labels[samples] == classes
        r_inter[is_target] = 0
        self.inter_losses += np.bincount(samples, r_inter * cosines, len(self.labels))
        if not self.with_gradients:
            return
        rows = classes - first
        h = np.where(is_target, self.target_g[samples], r_inter * self.factors[samples]) / norms[rows]
        matrix = csr_matrix((h, (rows, samples)), (last - first, len(self.labels)))
        radial = _radial(np.bincount(rows, h * cosines, last - first).astype(h.dtype), norms)
        self.groups.append(_Group(first, last, matrix, radial))


def _radial(sums: np.ndarray, norms: np.ndarray) -> np.ndarray:
    return sums * (norms > NORM_FLOOR) / norms


def _rows_in_use(matrix: csr_matrix, rows: slice) -> tuple[np.ndarray | slice, csr_matrix]:
    """The rows with entries, or all rows where many have some, and a matrix of these that shares its memory."""
    starts = matrix.indptr[rows.start : rows.stop + 1]
    here = slice(starts[0], starts[-1])
    starts = starts - starts[0]
    used: np.ndarray | slice = np.flatnonzero(np.diff(starts))
    if 4 * len(used) > len(starts):
        used = slice(None)  # leaving out a few rows takes longer
    starts = np.append(starts[:-1][used], starts[-1])
    return used, csr_matrix((matrix.data[here], matrix.indices[here], starts), (len(starts) - 1, matrix.shape[1]))


class _Exporter:
    """The interface that `numpy.from_dlpack` needs; MXNet 1.9.1 has it under another name."""

    def __init__(self, array: NDArray) -> None:
        self.array = array

    def __dlpack__(self, stream: None = None) -> object:
        return self.array.to_dlpack_for_write()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


def memory(array: NDArray) -> np.ndarray:
    """A NumPy view of an array on the CPU, which can be read and written."""
    view = np.from_dlpack(_Exporter(array))
    interface = view.__array_interface__ | {"data": (view.ctypes.data, False)}  # from_dlpack makes it read-only
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=view))


def _at_cosines(r: Callable[[NDArray], NDArray], cosines: np.ndarray) -> np.ndarray:
    """r of theta, in MXNet; it has no arrays of length 0."""
    if not len(cosines):
        return cosines
    return r(nd.array(np.arccos(cosines), mx.cpu(), cosines.dtype)).asnumpy()


def _parts(*values: np.ndarray | float) -> Iterator[NDArray]:
    """The values as parts of one array: to make an array takes MXNet ten times as long as to slice one."""
    arrays = [np.atleast_1d(value) for value in values]
    whole = nd.array(np.concatenate(arrays), mx.cpu(), arrays[-1].dtype)
    ends = np.cumsum([len(array) for array in arrays])
    return (whole[end - len(array) : end] for end, array in zip(ends, arrays, strict=True))


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.maximum(np.sqrt(np.einsum("ij,ij->i", vectors, vectors)), NORM_FLOOR)
