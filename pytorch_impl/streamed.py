"""A loss whose classes are independent, with both its gradients, in one pass over blocks of classes (PyTorch).

For unit vectors x^ (N, D) and w^ (C, D), their angles theta, labels y and weights r that are constants for the gradient:

    loss = mean_i( -r_intra(theta[i,y_i]) cos[i,y_i]  +  sum_{j != y_i} r_inter(theta[i,j]) cos[i,j] )
    g[i,y_i] = -r_intra / N,    g[i,j] = r_inter / N
    dL/dx_i = (u_i - (u_i . x^_i) x^_i) / ||x_i||   with  u = g w^
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||   with  v = g' x^

No class needs to know of another one, so no (N, C) matrix is held. And nearly all r_inter are nearly 0: on the CPU those
of cosines below a given one are left out, and the few entries of g that remain are gathered. Needs PyTorch only.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_FLOOR = 1e-12  # a zero vector is divided by this instead of by zero
DENSE_SHARE = 0.05  # of a block's entries: with more, products of the whole block are faster than gathering
WAITING = 4096  # gathered entries that wait until their part of the gradients is computed

Weight = Callable[[Tensor], Tensor]  # r as a function of theta, any shape


def streamed(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
    r_intra: Weight,
    r_inter: Weight,
    *,
    least_cosine: float,
    block_size: int,
) -> tuple[Tensor, ...]:
    """Loss, intra_loss, inter_loss, target_cosine, other_cosine, accuracy; the loss is differentiable once.

    Args:
        embeddings: (N, D).
        class_weight: (C, D), of the same dtype.
        labels: 0..C-1, int64, (N,).
        r_intra: weight of a sample's own cosine, given its angle.
        r_inter: weight of the other cosines, given their angles.
        least_cosine: on the CPU, r_inter is taken to be 0 for cosines below this; with -1 for none.
        block_size: classes a block; memory beside the gradients is O(N * block_size).
    """
    return _Streamed.apply(embeddings, class_weight, labels, r_intra, r_inter, least_cosine, block_size)


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, class_weight, labels, r_intra, r_inter, least_cosine, block_size):
        ctx.save_for_backward(embeddings, class_weight, labels)
        ctx.arguments = r_intra, r_inter, least_cosine, block_size
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
        return *gradients, *[None] * 5


class _Pass:
    """The sums over blocks, all done once it is made."""

    def __init__(
        self,
        embeddings: Tensor,
        class_weight: Tensor,
        labels: Tensor,
        r_intra: Weight,
        r_inter: Weight,
        least_cosine: float,
        block_size: int,
    ) -> None:
        self.class_weight, self.labels, self.r_inter, self.least_cosine = class_weight, labels, r_inter, least_cosine
        self.unit_embeddings, self.embedding_norms = normalise(embeddings)
        own_prototypes, _ = normalise(class_weight[labels])
        self.target_cosines = (self.unit_embeddings * own_prototypes).sum(1).clamp(-1, 1)
        self.r_intra = r_intra(torch.acos(self.target_cosines))

        self.inter_sum = embeddings.new_zeros(())
        self.cosine_sum = -self.target_cosines.sum()
        self.nearest_other = embeddings.new_full((len(labels),), -1)
        self.grad_unit_embeddings = torch.zeros_like(embeddings)
        self.grad_class_weight = torch.zeros_like(class_weight)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # samples, classes and cosines of gathered entries

        gathers = least_cosine > -1 and embeddings.device.type == "cpu"
        for first in range(0, len(class_weight), block_size):
            self._add_block(slice(first, min(first + block_size, len(class_weight))), gathers)
        self._add_waiting()

    def values(self) -> tuple[Tensor, ...]:
        batch_size, num_classes = len(self.labels), len(self.class_weight)
        intra_loss = (-self.r_intra * self.target_cosines).mean()
        inter_loss = self.inter_sum / batch_size
        return (
            intra_loss + inter_loss,
            intra_loss,
            inter_loss,
            self.target_cosines.mean(),
            self.cosine_sum / (batch_size * (num_classes - 1)),
            accuracy(self.target_cosines, self.nearest_other),
        )

    def gradients(self) -> tuple[Tensor, Tensor]:
        through = through_normalisation(self.grad_unit_embeddings, self.unit_embeddings, self.embedding_norms)
        return through, self.grad_class_weight

    def _add_block(self, block: slice, gathers: bool) -> None:
        weight = self.class_weight[block]
        norms = torch.linalg.vector_norm(weight, dim=1).clamp_min_(NORM_FLOOR)
        cosines = (self.unit_embeddings @ weight.T).div_(norms)
        self.cosine_sum += cosines.sum()
        is_own = (self.labels >= block.start) & (self.labels < block.stop)
        own = torch.where(is_own, self.labels - block.start, 0)
        _put(cosines, own, is_own, -1)
        highest = cosines.amax(1).clamp_max_(1)
        self.nearest_other = torch.maximum(self.nearest_other, highest)
        if not (gathers and self._gather(block, cosines, highest, is_own)):
            self._add_dense(block, cosines, norms, own, is_own)

    def _gather(self, block: slice, cosines: Tensor, highest: Tensor, is_own: Tensor) -> bool:
        """Keep the block's entries for later; False: there are so many that this does not pay."""
        limit = DENSE_SHARE * cosines.numel()
        samples = (~(highest < self.least_cosine)).nonzero()[:, 0]  # not <, so that NaN is kept and seen
        cosines = cosines[samples]
        rows, columns = (~(cosines < self.least_cosine)).nonzero().unbind(1)
        if len(rows) > limit:
            return False
        mine = is_own.nonzero()[:, 0]
        self.waiting += [
            (samples[rows], columns + block.start, cosines[rows, columns]),
            (mine, self.labels[mine], self.target_cosines[mine]),
        ]
        if sum(len(part[0]) for part in self.waiting) > WAITING:
            self._add_waiting()
        return True

    def _add_waiting(self) -> None:
        if not self.waiting:
            return
        samples, classes, cosines = map(torch.cat, zip(*self.waiting, strict=True))
        self.waiting = []
        is_own = classes == self.labels[samples]
        r_inter = self.r_inter(torch.acos(cosines.clamp(-1, 1))).masked_fill_(is_own, 0)
        self.inter_sum += (r_inter * cosines).sum()
        g = torch.where(is_own, -self.r_intra[samples], r_inter) / len(self.labels)

        classes, columns = torch.unique(classes, return_inverse=True)
        prototypes, norms = normalise(self.class_weight[classes])
        self.grad_unit_embeddings += _weighted_sums(samples, len(self.labels), g, columns, prototypes)
        sums = _weighted_sums(columns, len(classes), g, samples, self.unit_embeddings)
        self.grad_class_weight[classes] = through_normalisation(sums, prototypes, norms)

    def _add_dense(self, block: slice, cosines: Tensor, norms: Tensor, own: Tensor, is_own: Tensor) -> None:
        cosines.clamp_(-1, 1)
        r_inter = self.r_inter(torch.acos(cosines))
        _put(r_inter, own, is_own, 0)
        self.inter_sum += (r_inter * cosines).sum()
        g = r_inter / len(self.labels)
        _put(g, own, is_own, -self.r_intra / len(self.labels))

        prototypes = self.class_weight[block] / norms[:, None]
        self.grad_unit_embeddings += g @ prototypes
        self.grad_class_weight[block] = through_normalisation(g.T @ self.unit_embeddings, prototypes, norms[:, None])


def normalise(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (N, D) and norms (N, 1), which are at least NORM_FLOOR."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min(NORM_FLOOR)
    return vectors / norms, norms


def through_normalisation(grad_unit: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """Gradient for v, given the gradient for v / max(||v||, floor): at the floor that is a plain division."""
    radial = (grad_unit * unit).sum(1, keepdim=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / norms


def accuracy(target_cosines: Tensor, nearest_other: Tensor) -> Tensor:
    """Share of samples to which no other prototype is nearer than their own."""
    return (target_cosines >= nearest_other).to(target_cosines.dtype).mean()


def _put(matrix: Tensor, columns: Tensor, where: Tensor, values: Tensor | float) -> None:
    """matrix[i, columns[i]] = values[i] for the rows of `where`; on a GPU nobody has to wait for it."""
    index = columns[:, None]
    kept = matrix.gather(1, index)[:, 0]
    matrix.scatter_(1, index, torch.where(where, values, kept)[:, None])


def _weighted_sums(group: Tensor, num_groups: int, weight: Tensor, member: Tensor, table: Tensor) -> Tensor:
    """Sums of weight[e] * table[member[e]] over the entries e of each group, (num_groups, D)."""
    order = group.argsort(stable=True)
    counts = group.bincount(minlength=num_groups)
    first = counts.cumsum(0) - counts
    return F.embedding_bag(member[order], table, first, mode="sum", per_sample_weights=weight[order])
