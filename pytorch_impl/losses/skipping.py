"""A pass that computes only the entries whose push matters, on the CPU: part of the streamed form of SFace.

A block's entries at cosines from `least_cosine` on are found in one of two ways. Screening looks at rounded cosines,
whose error has a bound, and computes the few candidates again; gathering looks at the block's cosines themselves. A
block with many such entries is computed densely.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .dense import Block, DensePass
from .screening import Screen, can_screen, dots_at, in_chunks, not_below
from .sface import NORM_FLOOR, Rescaling, Shard

_DENSE_SHARE = 0.08  # of a block's entries: with more, products of the whole block are faster than gathering;
_LONG, _SHORT = 512, 128  # the share of vectors with _LONG - _SHORT dimensions or more, less for shorter ones
_SCREEN_SHARE = 0.03  # of a block's entries: with more, a float32 product is faster than computing them again
_SCREEN_AGAIN = 4  # screening starts again after a block with this many times fewer entries than that
_CROWDED = 0.5  # entries for a class of a block: with more, its gradient is written in one piece
_WAITING = 4096  # entries that are collected before their part of the gradients is computed


class SkippingPass(DensePass):
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
        self.dense_share = _DENSE_SHARE * min(1, (embeddings.shape[1] + _SHORT) / _LONG)
        self.screen = Screen(self.unit_embeddings) if can_screen(embeddings) else None
        self.screens = self.screen is not None
        self.embedding_sum = self.unit_embeddings.sum(0)
        self.own_is_left = torch.zeros_like(labels, dtype=torch.bool)
        # samples, classes, cosines and r_inter of entries: in one place, small tensors would break the heap into pieces
        self.waiting = *labels.new_empty(2, _WAITING), *embeddings.new_empty(2, _WAITING)
        self.num_waiting = 0

    def run(self, block_size: int) -> None:
        super().run(block_size)
        if self.with_gradients:
            self._add_waiting()
            own = self.own_is_left.nonzero()[:, 0]
            self._add_scattered(own, self.labels[own], self.target_cosines[own], -self.r_intra[own])

    def _add(self, block: Block) -> None:
        if self.screens and self._screen(block):
            return
        cosines, highest = self._cosines(block)
        if not self._gather(block, cosines, highest):
            self._add_dense(block, cosines)

    def _screen(self, block: Block) -> bool:
        """Add the block's entries, found among rounded cosines and computed again; False: too many for that."""
        screened = self.screen.cosines(block.weight, block.norms.reciprocal())
        if screened is None:
            return False
        products, steps, errors, prototype_sum = screened
        block.fill(products.T, torch.iinfo(products.dtype).min)
        chunks, largest = in_chunks(products)
        highest = largest.amax(0) * steps
        # where only exact cosines tell whether another prototype is nearer than a sample's own, they are candidates too
        unclear = (highest - self.target_cosines).abs() <= errors
        least = torch.where(unclear, self.target_cosines.clamp_max(self.least_cosine), self.least_cosine) - errors
        limits, most = (least / steps).floor().int(), _SCREEN_SHARE * products.numel()
        self.screens = int((largest >= limits).sum()) <= most  # each has an entry, or more
        if self.screens:
            samples, columns = not_below(chunks, largest, limits)
            self.screens = len(samples) <= most
        if self.screens:
            exact = dots_at(samples, columns, self.unit_embeddings, block.weight)
            exact.div_(block.norms[columns]).clamp_max_(1)
            self.nearest_other = torch.maximum(self.nearest_other, highest - errors)
            self.nearest_other.scatter_reduce_(0, samples, exact, "amax")
            self.cosine_sum += self.embedding_sum @ prototype_sum
            active = (~(exact < self.least_cosine)).nonzero()[:, 0]
            self._collect(block, samples[active], columns[active], exact[active])
        return self.screens

    def _gather(self, block: Block, cosines: Tensor, highest: Tensor) -> bool:
        """Add the block's entries; False: too many for that."""
        rows = (~(highest < self.least_cosine)).nonzero()[:, 0]  # NaN is not below, so that it shows in the loss
        is_active = ~(cosines.index_select(0, rows) < self.least_cosine)
        count = int(is_active.sum())
        self.screens = self.screen is not None and _SCREEN_AGAIN * count <= _SCREEN_SHARE * cosines.numel()
        few = count <= self.dense_share * cosines.numel()
        if few:
            found, columns = is_active.nonzero().unbind(1)
            samples = rows[found]
            self._collect(block, samples, columns, cosines[samples, columns])
        return few

    def _collect(self, block: Block, samples: Tensor, columns: Tensor, cosines: Tensor) -> None:
        """Take a block's entries of other classes, samples rising; the samples' own classes are added at the end."""
        self.own_is_left |= True if block.is_own is None else block.is_own
        cosines = cosines.clamp(-1, 1)
        r_inter = self.rescaling.push(torch.acos(cosines))
        self.inter_losses += samples.bincount(r_inter * cosines, len(self.labels))
        if not self.with_gradients:
            return
        grad = self.grad_class_weight[block.classes]
        if len(samples) > _CROWDED * len(grad):
            self._add_entries(samples, columns, cosines, r_inter, block.weight, block.norms, out=grad)
            return
        grad.zero_()
        entries = samples, columns + block.classes.start, cosines, r_inter
        if self.num_waiting + len(samples) > _WAITING:
            self._add_waiting()
        if len(samples) > _WAITING:
            self._add_scattered(*entries)
        else:
            for waiting, new in zip(self.waiting, entries, strict=True):
                waiting[self.num_waiting : self.num_waiting + len(new)] = new
            self.num_waiting += len(samples)

    def _add_waiting(self) -> None:
        if self.num_waiting:
            samples, *others = (waiting[: self.num_waiting] for waiting in self.waiting)
            samples, order = samples.sort(stable=True)
            self._add_scattered(samples, *(entries.index_select(0, order) for entries in others))
            self.num_waiting = 0

    def _add_scattered(self, samples: Tensor, classes: Tensor, cosines: Tensor, g: Tensor) -> None:
        """Add entries of any classes, samples rising, to the gradients."""
        rows, columns = classes.unique(return_inverse=True)
        weight = self.class_weight.index_select(0, rows)
        grad = self._add_entries(samples, columns, cosines, g, weight, self.norms.index_select(0, rows))
        self.grad_class_weight.index_copy_(0, rows, grad.add_(self.grad_class_weight.index_select(0, rows)))

    def _add_entries(
        self,
        samples: Tensor,
        columns: Tensor,
        cosines: Tensor,
        g: Tensor,
        weight: Tensor,
        norms: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:
        """Add entries, samples rising, to the gradient of embeddings; return that of `weight` (B, D)."""
        g_by_norm = g / norms.index_select(0, columns)
        of_samples = samples.bincount(minlength=len(self.labels))
        self.grad_unit_embeddings += weighted_sums(g_by_norm, columns, weight, of_samples)
        radial = columns.bincount(g_by_norm * cosines * self.factors.index_select(0, samples), len(weight))
        columns, order = columns.sort(stable=True)
        samples, g_by_norm = samples.index_select(0, order), g_by_norm.index_select(0, order)
        sums = weighted_sums(g_by_norm, samples, self.weighted_embeddings, columns.bincount(minlength=len(weight)))
        return torch.addcmul(sums, weight, (radial / norms * (norms > NORM_FLOOR))[:, None], value=-1, out=out)


def weighted_sums(weights: Tensor, rows: Tensor, table: Tensor, counts: Tensor) -> Tensor:
    """Sums (groups, D) of weights[e] * table[rows[e]] over the entries e of a group; groups lie one after the other."""
    return F.embedding_bag(rows, table, counts.cumsum(0) - counts, mode="sum", per_sample_weights=weights)
