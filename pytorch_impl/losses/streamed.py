"""A loss whose classes are independent, with both its gradients, in one pass over blocks of classes (PyTorch).

For unit vectors x^ (N, D) and w^ (C, D), their angles theta, labels y, and weights r, constants for the gradient:

    loss = mean_i( -r_intra(theta[i,y_i]) cos[i,y_i]  +  sum_{j != y_i} r_inter(theta[i,j]) cos[i,j] )
    g[i,y_i] = -r_intra / N,    g[i,j] = r_inter / N
    dL/dx_i = (u_i - (u_i . x^_i) x^_i) / ||x_i||   with  u = g w^
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||   with  v = g' x^

No class needs to know of another one, so no (N, C) matrix is held. And nearly all r_inter are nearly 0: on the CPU
those of cosines below a given one are left out, and the few entries of g that remain are gathered. Needs PyTorch and
`screening.py` only.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pytorch_impl.losses.screening import Screen, can_screen, dots_at, in_chunks, not_below

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero
_DENSE_SHARE = 0.08  # of a block's entries: with more, products of the whole block are faster than gathering
_SCREEN_SHARE = 0.03  # of a block's entries: with more, a float32 product is faster than computing them again
_SCREEN_AGAIN = 4  # so much fewer entries than that have to be found in one block for the next to be screened again
_WAITING = 4096  # gathered entries that wait until their part of the gradients is computed

_Weight = Callable[[Tensor], Tensor]  # r as a function of theta, any shape


class Shard(NamedTuple):
    """Says that `class_weight` holds a part of all classes, the others being with other processes."""

    num_classes: int  # of all parts together
    total: _Weight  # sum over the processes, elementwise
    highest: _Weight  # maximum over the processes, elementwise


def streamed(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
    r_intra: _Weight,
    r_inter: _Weight,
    *,
    least_cosine: float,
    block_size: int | None = None,
    compiled: bool = False,
    shard: Shard | None = None,
) -> tuple[Tensor, ...]:
    """Loss, intra_loss, inter_loss, target_cosine, other_cosine, accuracy; the loss is differentiable once.

    Args:
        embeddings: (N, D).
        class_weight: (C, D), of the same dtype.
        labels: 0..C-1, int64, (N,); with `shard`, of others too, whose classes are elsewhere.
        r_intra: weight of a sample's own cosine, given its angle.
        r_inter: weight of the other cosines, given their angles.
        least_cosine: on the CPU, r_inter is taken to be 0 for cosines below this; with -1 for none.
        block_size: classes a block; memory beside the gradients is O(N * block_size). None: 2048, so that a block stays
            in a processor's cache; on a CUDA device as many as give a block 2**24 entries, to keep it busy.
        compiled: where every entry counts (on a CUDA device, or with least_cosine -1), compute what becomes of a
            block's product in one kernel, compiled at the first call.
        shard: values are those of all classes, the gradient for embeddings that of this part.
    """
    if block_size is None:
        block_size = 2048 if embeddings.device.type == "cpu" else max(1, 2**24 // len(labels))
    return _Streamed.apply(
        embeddings, class_weight, labels, r_intra, r_inter, least_cosine, block_size, compiled, shard
    )


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, class_weight, labels, *arguments):
        ctx.save_for_backward(embeddings, class_weight, labels)
        ctx.arguments = arguments
        done = _Pass(embeddings, class_weight, labels, *ctx.arguments)
        ctx.gradients, values = done.gradients(), done.values()
        ctx.mark_non_differentiable(*values[1:])
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, *_):
        # given away, so that no second (C, D) tensor is needed; a second backward computes them anew
        gradients, ctx.gradients = ctx.gradients or _Pass(*ctx.saved_tensors, *ctx.arguments).gradients(), None
        if grad_loss.device.type != "cpu" or grad_loss != 1:
            for gradient in gradients:
                gradient.mul_(grad_loss)
        return *gradients, *[None] * 7


class _Pass:
    """The sums over blocks, all done once it is made."""

    def __init__(
        self,
        embeddings: Tensor,
        class_weight: Tensor,
        labels: Tensor,
        r_intra: _Weight,
        r_inter: _Weight,
        least_cosine: float,
        block_size: int,
        compiled: bool,
        shard: Shard | None,
    ) -> None:
        self.class_weight, self.labels, self.r_inter, self.least_cosine = class_weight, labels, r_inter, least_cosine
        self.unit_embeddings, self.embedding_norms = _normalise(embeddings)
        self.shard = shard
        rows = labels if shard is None else labels.clamp(0, len(class_weight) - 1)
        own_prototypes, _ = _normalise(class_weight[rows])
        self.target_cosines = (self.unit_embeddings * own_prototypes).sum(1).clamp(-1, 1)
        if shard is not None:
            self.target_cosines.masked_fill_(rows != labels, 0)
        self.cosine_sum = -self.target_cosines.sum()
        if shard is not None:
            self.target_cosines = shard.total(self.target_cosines)
        self.r_intra = r_intra(torch.acos(self.target_cosines))

        self.inter_sum = embeddings.new_zeros(())
        self.nearest_other = embeddings.new_full((len(labels),), -1)
        self.norms = class_weight.new_empty(len(class_weight))
        self.grad_unit_embeddings = torch.zeros_like(embeddings)
        # samples, classes and cosines of gathered entries: in one place, small tensors would break the heap into pieces
        self.waiting = labels.new_empty(_WAITING), labels.new_empty(_WAITING), embeddings.new_empty(_WAITING)
        self.num_waiting = 0

        self.gathers = least_cosine > -1 and embeddings.device.type == "cpu"
        # every row is written but those of prototypes without a gathered entry
        self.grad_class_weight = (torch.zeros_like if self.gathers else torch.empty_like)(class_weight)
        self.compiled = compiled and not self.gathers
        self.screen = Screen(self.unit_embeddings) if self.gathers and can_screen(embeddings) else None
        self.screens = self.screen is not None
        self.embedding_sum = self.unit_embeddings.sum(0)
        for first in range(0, len(class_weight), block_size):
            self._add_block(slice(first, min(first + block_size, len(class_weight))))
        self._add_waiting()

    def values(self) -> tuple[Tensor, ...]:
        batch_size, num_classes = len(self.labels), len(self.class_weight)
        if self.shard is not None:
            num_classes = self.shard.num_classes
            self.inter_sum, self.cosine_sum = self.shard.total(torch.stack([self.inter_sum, self.cosine_sum]))
            self.nearest_other = self.shard.highest(self.nearest_other)
        intra_loss = (-self.r_intra * self.target_cosines).mean()
        inter_loss = self.inter_sum / batch_size
        return (
            intra_loss + inter_loss,
            intra_loss,
            inter_loss,
            self.target_cosines.mean(),
            self.cosine_sum / (batch_size * (num_classes - 1)),
            _accuracy(self.target_cosines, self.nearest_other),
        )

    def gradients(self) -> tuple[Tensor, Tensor]:
        through = _through_normalisation(self.grad_unit_embeddings, self.unit_embeddings, self.embedding_norms)
        return through, self.grad_class_weight

    def _add_block(self, block: slice) -> None:
        weight = self.class_weight[block]
        norms = torch.linalg.vector_norm(weight, dim=1, out=self.norms[block]).clamp_min_(NORM_FLOOR)
        is_own = (self.labels >= block.start) & (self.labels < block.stop)
        own = torch.where(is_own, self.labels - block.start, 0)
        if self.screens and self._screen(block, own, is_own):
            return
        if self.compiled:
            self._add_compiled(block, norms)
            return
        cosines = (self.unit_embeddings @ weight.T).div_(norms)
        self.cosine_sum += cosines.sum()
        _put(cosines, own, is_own, -1)
        highest = cosines.amax(1).clamp_max_(1)
        self.nearest_other = torch.maximum(self.nearest_other, highest)
        if not (self.gathers and self._gather(block, cosines, highest, is_own)):
            self._add_dense(block, cosines, norms, own, is_own)

    def _screen(self, block: slice, own: Tensor, is_own: Tensor) -> bool:
        """Gather the block's entries, found among rounded cosines and computed again; False: too many for that."""
        weight, norms = self.class_weight[block], self.norms[block]
        inverse_norms = norms.reciprocal()
        screened = self.screen.cosines(weight, inverse_norms)
        if screened is None:
            return False
        products, steps, errors, prototype_sum = screened
        _put(products.T, own, is_own, torch.iinfo(products.dtype).min)
        chunks, largest = in_chunks(products)
        highest = largest.amax(0) * steps
        # where only the exact cosines tell whether another prototype is nearer than a sample's own, they count too
        unclear = (highest - self.target_cosines).abs() <= errors
        least = torch.where(unclear, self.target_cosines.clamp_max(self.least_cosine), self.least_cosine) - errors
        samples, columns = not_below(chunks, largest, (least / steps).floor().int())
        self.screens = len(samples) <= _SCREEN_SHARE * products.numel()
        if self.screens:
            exact = dots_at(samples, columns, self.unit_embeddings, weight).div_(norms[columns]).clamp_max_(1)
            self.nearest_other = torch.maximum(self.nearest_other, highest - errors)
            self.nearest_other.scatter_reduce_(0, samples, exact, "amax")
            self.cosine_sum += self.embedding_sum @ prototype_sum
            active = (~(exact < self.least_cosine)).nonzero()[:, 0]
            self._wait(block, samples[active], columns[active], exact[active], is_own)
        return self.screens

    def _gather(self, block: slice, cosines: Tensor, highest: Tensor, is_own: Tensor) -> bool:
        """Gather the block's entries; False: too many for that."""
        samples, columns = _not_below(cosines, highest, torch.full_like(highest, self.least_cosine))
        self.screens = self.screen is not None and _SCREEN_AGAIN * len(samples) <= _SCREEN_SHARE * cosines.numel()
        few = len(samples) <= _DENSE_SHARE * cosines.numel()
        if few:
            self._wait(block, samples, columns, cosines[samples, columns], is_own)
        return few

    def _wait(self, block: slice, samples: Tensor, columns: Tensor, cosines: Tensor, is_own: Tensor) -> None:
        own = is_own.nonzero()[:, 0]
        entries = (
            torch.cat([samples, own]),
            torch.cat([columns + block.start, self.labels[own]]),
            torch.cat([cosines, self.target_cosines[own]]),
        )
        count = len(entries[0])
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

    def _add_entries(self, samples: Tensor, classes: Tensor, cosines: Tensor) -> None:
        order = classes.argsort(stable=True)
        samples, classes, cosines = samples[order], classes[order], cosines[order].clamp_(-1, 1)
        is_own = classes == self.labels[samples]
        r_inter = self.r_inter(torch.acos(cosines)).masked_fill_(is_own, 0)
        self.inter_sum += (r_inter * cosines).sum()
        g = torch.where(is_own, -self.r_intra[samples], r_inter) / len(self.labels)
        g_by_norm = g / self.norms[classes]

        order = samples.argsort(stable=True)
        counts = samples.bincount(minlength=len(self.labels))
        self.grad_unit_embeddings += _weighted_sums(g_by_norm[order], classes[order], self.class_weight, counts)

        rows, columns, counts = classes.unique_consecutive(return_inverse=True, return_counts=True)
        norms = self.norms[rows]
        radial = columns.bincount(g_by_norm * cosines) / norms * (norms > NORM_FLOOR)
        sums = _weighted_sums(g_by_norm, samples, self.unit_embeddings, counts)
        sums.addcmul_(self.class_weight.index_select(0, rows), radial[:, None], value=-1)
        self.grad_class_weight.index_copy_(0, rows, sums)

    def _add_dense(self, block: slice, cosines: Tensor, norms: Tensor, own: Tensor, is_own: Tensor) -> None:
        _put(cosines, own, is_own, self.target_cosines)
        cosines.clamp_(-1, 1)
        g = self.r_inter(torch.acos(cosines))
        _put(g, own, is_own, 0)
        self.inter_sum += (g * cosines).sum()
        _put(g, own, is_own, -self.r_intra)
        g_by_norm = g.div_(norms * len(self.labels))
        self._add_products(block, g_by_norm, (g_by_norm * cosines).sum(0))

    def _add_compiled(self, block: slice, norms: Tensor) -> None:
        dots = self.class_weight[block] @ self.unit_embeddings.T
        g_by_norm, radial, inter_sums, cosine_sums, highest = _compiled()(
            dots, norms, self.labels - block.start, self.target_cosines, self.r_intra, self.r_inter
        )
        self.inter_sum += inter_sums.sum()
        self.cosine_sum += cosine_sums.sum()
        self.nearest_other = torch.maximum(self.nearest_other, highest)
        self._add_products(block, g_by_norm.T, radial)

    def _add_products(self, block: slice, g_by_norm: Tensor, radial: Tensor) -> None:
        weight, norms = self.class_weight[block], self.norms[block]
        self.grad_unit_embeddings.addmm_(g_by_norm, weight)
        grad_weight = torch.mm(g_by_norm.T, self.unit_embeddings, out=self.grad_class_weight[block])
        grad_weight.addcmul_(weight, (radial / norms * (norms > NORM_FLOOR))[:, None], value=-1)


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_dense_entries, dynamic=True)


def _dense_entries(
    dots: Tensor, norms: Tensor, own: Tensor, target_cosines: Tensor, r_intra: Tensor, r_inter: _Weight
) -> tuple[Tensor, ...]:
    """g by norms of a block, from its dots (classes, N), and sums a class: of that times cos, of r_inter cos, of cos.

    And each sample's largest cosine with another's prototype. A row is a class, so that one kernel makes all the sums.
    """
    is_target = torch.arange(len(dots), device=dots.device)[:, None] == own
    norms = norms[:, None]
    cosines = torch.where(is_target, target_cosines, (dots / norms).clamp(-1, 1))
    push = torch.where(is_target, 0, r_inter(torch.acos(cosines)))
    g_by_norm = torch.where(is_target, -r_intra, push) / (norms * dots.shape[1])
    highest = torch.where(is_target, -1, cosines).amax(0)
    return g_by_norm, (g_by_norm * cosines).sum(1), (push * cosines).sum(1), cosines.sum(1), highest


def _normalise(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, D) and norms (N, 1), which are at least NORM_FLOOR."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(NORM_FLOOR)
    return vectors / norms, norms


def _through_normalisation(grad_unit: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """Gradient for v, given the gradient for v / max(||v||, floor): at the floor that is a plain division."""
    radial = (grad_unit * unit).sum(1, keepdim=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / norms


def _accuracy(target_cosines: Tensor, nearest_other: Tensor) -> Tensor:
    """Share of samples to which no other prototype is nearer than their own."""
    return (target_cosines >= nearest_other).to(target_cosines.dtype).mean()


def _put(matrix: Tensor, columns: Tensor, where: Tensor, values: Tensor | float) -> None:
    """matrix[i, columns[i]] = values[i] for the rows of `where`; on a GPU nobody has to wait for it."""
    index = columns[:, None]
    kept = matrix.gather(1, index)[:, 0]
    matrix.scatter_(1, index, torch.where(where, values, kept)[:, None])


def _not_below(cosines: Tensor, highest: Tensor, least: Tensor) -> tuple[Tensor, ...]:
    """Rows and columns of the cosines that are not below `least` of their row; NaN, which is not, shows in the loss."""
    rows = (~(highest < least)).nonzero()[:, 0]
    found, columns = (~(cosines.index_select(0, rows) < least[rows, None])).nonzero().unbind(1)
    return rows[found], columns


def _weighted_sums(weight: Tensor, member: Tensor, table: Tensor, counts: Tensor) -> Tensor:
    """Sums of weight[e] * table[member[e]] over groups of entries e, which lie one behind the other, (groups, D)."""
    return F.embedding_bag(member, table, counts.cumsum(0) - counts, mode="sum", per_sample_weights=weight)
