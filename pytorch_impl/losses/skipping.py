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
        if with_gradients:
            self.grad_class_weight.zero_()  # prototypes without an entry are not written
        self.least_cosine = least_cosine
        self.dense_share = _DENSE_SHARE * min(1, (embeddings.shape[1] + _SHORT) / _LONG)
        self.screen = Screen(self.unit_embeddings) if can_screen(embeddings) else None
        self.screens = self.screen is not None
        self.embedding_sum = self.unit_embeddings.sum(0)
        # samples, classes and cosines of entries: in one place, small tensors would break the heap into pieces
        self.waiting = labels.new_empty(_WAITING), labels.new_empty(_WAITING), embeddings.new_empty(_WAITING)
        self.num_waiting = 0

    def run(self, block_size: int) -> None:
        super().run(block_size)
        self._add_waiting()

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
        """Entries of other classes, and those of the samples' own classes in the block."""
        is_own = torch.ones_like(self.labels) if block.is_own is None else block.is_own
        own = is_own.nonzero()[:, 0]
        entries = (
            torch.cat([samples, own]),
            torch.cat([columns + block.classes.start, self.labels[own]]),
            torch.cat([cosines, self.target_cosines[own]]),
        )
        count = len(entries[0])
        if count > _CROWDED * len(block.weight):
            self._add_entries(*entries, block)
            return
        if self.num_waiting + count > _WAITING:
            self._add_waiting()
        if count > _WAITING:
            self._add_entries(*entries)
        else:
            for waiting, new in zip(self.waiting, entries, strict=True):
                waiting[self.num_waiting : self.num_waiting + count] = new
            self.num_waiting += count

    def _add_waiting(self) -> None:
        if self.num_waiting:
            self._add_entries(*(waiting[: self.num_waiting] for waiting in self.waiting))
            self.num_waiting = 0

    def _add_entries(self, samples: Tensor, classes: Tensor, cosines: Tensor, block: Block | None = None) -> None:
        """Add entries to sums and gradients; if they are all that a block has, its gradient is written in one piece."""
        order = classes.argsort(stable=True)
        samples, classes, cosines = samples[order], classes[order], cosines[order].clamp_(-1, 1)
        is_own = classes == self.labels[samples]
        r_inter = self.rescaling.push(torch.acos(cosines)).masked_fill_(is_own, 0)
        self.inter_losses += samples.bincount(r_inter * cosines, len(self.labels))
        if not self.with_gradients:
            return
        g_by_norm = torch.where(is_own, -self.r_intra[samples], r_inter) / self.norms[classes]

        order = samples.argsort(stable=True)
        counts = samples.bincount(minlength=len(self.labels))
        self.grad_unit_embeddings += weighted_sums(g_by_norm[order], classes[order], self.class_weight, counts)

        radial_parts = g_by_norm * cosines * self.factors[samples]
        if block is None:
            rows, columns, counts = classes.unique_consecutive(return_inverse=True, return_counts=True)
            weight, norms = self.class_weight.index_select(0, rows), self.norms[rows]
        else:
            columns, weight, norms = classes - block.classes.start, block.weight, block.norms
            counts = columns.bincount(minlength=len(weight))
        sums = weighted_sums(g_by_norm, samples, self.weighted_embeddings, counts)
        radial = columns.bincount(radial_parts, len(weight)) / norms * (norms > NORM_FLOOR)
        if block is None:
            self.grad_class_weight.index_copy_(0, rows, sums.addcmul_(weight, radial[:, None], value=-1))
        else:
            torch.addcmul(sums, weight, radial[:, None], value=-1, out=self.grad_class_weight[block.classes])


def weighted_sums(weights: Tensor, rows: Tensor, table: Tensor, counts: Tensor) -> Tensor:
    """Sums (groups, D) of weights[e] * table[rows[e]] over the entries e of a group; groups lie one after the other."""
    return F.embedding_bag(rows, table, counts.cumsum(0) - counts, mode="sum", per_sample_weights=weights)
