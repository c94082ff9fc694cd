"""A pass that computes only the entries whose push matters, without waiting for the device: part of the streamed form.

A block's cosines come from float16 copies of the unit vectors; their error has a bound. Entries that may reach
`least_cosine` are listed in a room of fixed size and computed again in float32. A block with more entries than its room
holds counts as overflowed: the screened part of it weighs 0, and all of it is computed at the end. To know of these
blocks is the only time that the host waits.
"""

import math

import torch
from torch import Tensor

from .dense import Block, DensePass
from .sface import NORM_FLOOR, Rescaling, Shard
from .skipping import weighted_sums

_ROOM = 2**13  # entries that a block may have; one in float32 takes 2 D numbers while it is computed again
_HALF = 2.0**-11  # float16's rounding, of numbers; its smallest numbers are off by _SMALLEST at most
_SMALLEST = 2.0**-25
_SUM = 2.0**-22  # rounding of a sum's term, in float32; tensor cores cut off where others round


class CompactingPass(DensePass):
    """Sums and gradients without the entries below `least_cosine`, except in blocks with many others."""

    def __init__(
        self,
        embeddings: Tensor,
        class_weight: Tensor,
        labels: Tensor,
        factors: Tensor,
        rescaling: Rescaling,
        *,
        least_cosine: float,
        with_gradients: bool = True,
        shard: Shard | None = None,
    ) -> None:
        super().__init__(
            embeddings, class_weight, labels, factors, rescaling, with_gradients=with_gradients, shard=shard
        )
        self.least_cosine = least_cosine
        self.halves = self.unit_embeddings.half()
        self.errors = errors(self.unit_embeddings, self.halves)
        self.embedding_sum = self.unit_embeddings.sum(0)
        self.blocks: list[Block] = []
        self.overflowed: list[Tensor] = []

    def run(self, block_size: int) -> None:
        block_size = min(block_size, len(self.class_weight))
        super().run(block_size)
        overflowed = torch.stack(self.overflowed)
        if self.with_gradients:
            self._add_own(overflowed.repeat_interleave(block_size)[: len(self.class_weight)])
        for block, is_dense in zip(self.blocks, overflowed.tolist(), strict=True):  # here the host waits
            if is_dense:
                super()._add(block)

    def _add(self, block: Block) -> None:
        halves = torch.empty_like(block.weight, dtype=torch.float16)
        torch.mul(block.weight, block.norms.reciprocal()[:, None], out=halves)
        cosines = halves @ self.halves.T  # (B, N)
        block.fill(cosines.T, -4)
        highest = cosines.amax(0).to(self.unit_embeddings.dtype)
        # where only exact cosines tell whether another prototype is nearer than a sample's own, they are candidates too
        unclear = (highest - self.target_cosines).abs() <= self.errors
        least = torch.where(unclear, self.target_cosines.clamp_max(self.least_cosine), self.least_cosine) - self.errors
        is_candidate = ~(cosines < least)  # NaN is one, so that it shows in the loss
        counts = is_candidate.sum(1)
        overflows = counts.sum() > _ROOM
        self.blocks.append(block)
        self.overflowed.append(overflows)

        columns, samples = torch.nonzero_static(is_candidate, size=_ROOM, fill_value=-1).unbind(1)
        is_listed = (columns >= 0) & ~overflows
        columns, samples = columns.clamp_min(0), samples.clamp_min(0)
        exact = (self.unit_embeddings[samples] * block.weight[columns]).sum(1) / block.norms[columns]
        exact.clamp_(-1, 1)
        self.nearest_other = torch.maximum(self.nearest_other, (highest - self.errors).masked_fill(overflows, -1))
        self.nearest_other.scatter_reduce_(0, samples, exact.masked_fill(~is_listed, -1), "amax")
        prototype_sum = block.norms.reciprocal() @ block.weight
        self.cosine_sum += (self.embedding_sum @ prototype_sum).masked_fill(overflows, 0)

        is_active = is_listed & ~(exact < self.least_cosine)
        exact = exact.masked_fill(~is_active, 0)
        r_inter = self.rescaling.push(torch.acos(exact)).masked_fill(~is_active, 0)
        order = samples.argsort(stable=True)
        of_samples = samples.new_zeros(len(self.labels)).scatter_add_(0, samples, torch.ones_like(samples))
        self.inter_losses += _sums((r_inter * exact)[order], of_samples)
        if self.with_gradients:
            by_norm = r_inter / block.norms[columns]
            self.grad_unit_embeddings += weighted_sums(by_norm[order], columns[order], block.weight, of_samples)
            self._write_gradient(block, by_norm, exact, samples, counts)

    def _write_gradient(self, block: Block, by_norm: Tensor, exact: Tensor, samples: Tensor, counts: Tensor) -> None:
        ends = counts.cumsum(0).clamp_max_(_ROOM)  # entries lie in the order of their classes, the room's rest behind
        counts = ends.diff(prepend=ends.new_zeros(1))
        grad = weighted_sums(by_norm, samples, self.weighted_embeddings, counts)
        radial = _sums(by_norm * exact * self.factors[samples], counts) / block.norms * (block.norms > NORM_FLOOR)
        self.grad_class_weight[block.classes] = grad.addcmul_(block.weight, radial[:, None], value=-1)

    def _add_own(self, is_dense: Tensor) -> None:
        """The pull of each sample, but for classes (C,) that are yet to be computed."""
        rows = self.labels.clamp(0, len(self.class_weight) - 1)
        is_here = (rows == self.labels) & ~is_dense[rows]
        weight, norms = self.class_weight[rows], self.norms[rows]
        g = (-self.r_intra / norms).masked_fill(~is_here, 0)
        self.grad_unit_embeddings.addcmul_(weight, g[:, None])
        radial = g * self.target_cosines / norms * (norms > NORM_FLOOR)
        grad = (g[:, None] * self.unit_embeddings - radial[:, None] * weight) * self.factors[:, None]
        self.grad_class_weight.index_put_((rows,), grad, accumulate=True)


def errors(unit: Tensor, halves: Tensor) -> Tensor:
    """Bounds (N,) of |x^ . w^ - c| over all unit vectors w^, where c is a product of float16 copies in float16.

    |d_x| + |d_w| + |d_x| |d_w| for the copies, with d_x as it is; D roundings of the sum; one of the result.
    """
    dimensions = unit.shape[1]
    of_x = torch.linalg.vector_norm(unit - halves.to(unit.dtype), dim=1)
    of_w = _HALF * (1 + 2**-20) + math.sqrt(dimensions) * _SMALLEST
    return of_x * (1 + of_w) + of_w + dimensions * _SUM + 1.01 * _HALF


def _sums(values: Tensor, counts: Tensor) -> Tensor:
    """Sums (groups,) of values that lie group after group."""
    return weighted_sums(values, torch.zeros_like(values, dtype=torch.int64), values.new_ones(1, 1), counts)[:, 0]
