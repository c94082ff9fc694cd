"""A pass over blocks of classes that computes every entry: part of the streamed form of SFace (`streamed.py`)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .sface import NORM_FLOOR, Reduction, Rescaling, SFaceResult, Shard, normalise, reduced


class Block(NamedTuple):
    """Consecutive classes, B of them, and where in them the samples' own classes are."""

    classes: slice
    weight: Tensor  # (B, D)
    norms: Tensor  # (B,), at least NORM_FLOOR
    own: Tensor  # (N,), column of a sample's own class; 0 where that is not in the block
    is_own: Tensor | None  # (N,), whether it is in the block; None: all are

    def put(self, matrix: Tensor, values: Tensor) -> None:
        """Write `values` (N,) into matrix (N, B) at the samples' own classes; a CUDA device is not waited for."""
        index = self.own[:, None]
        if self.is_own is not None:
            values = torch.where(self.is_own, values, matrix.gather(1, index)[:, 0])
        matrix.scatter_(1, index, values[:, None])

    def fill(self, matrix: Tensor, value: float) -> None:
        """As `put` of the same value everywhere."""
        if self.is_own is None:
            matrix.scatter_(1, self.own[:, None], value)
        else:
            self.put(matrix, torch.full_like(self.own, value, dtype=matrix.dtype))


class DensePass:
    """Sums and gradients, added up block by block by `run`. The arguments are those of `streamed`.

    Without `with_gradients` only the losses and metrics are computed.
    """

    def __init__(
        self,
        embeddings: Tensor,
        class_weight: Tensor,
        labels: Tensor,
        factors: Tensor,
        rescaling: Rescaling,
        *,
        with_gradients: bool = True,
        shard: Shard | None = None,
        compiled: bool = False,
    ) -> None:
        self.class_weight, self.labels, self.factors, self.rescaling = class_weight, labels, factors, rescaling
        self.with_gradients, self.shard, self.compiled = with_gradients, shard, compiled
        self.unit_embeddings, self.embedding_norms = normalise(embeddings)
        rows = labels if shard is None else labels.clamp(0, len(class_weight) - 1)
        own_prototypes, _ = normalise(class_weight[rows])
        self.target_cosines = (self.unit_embeddings * own_prototypes).sum(1).clamp(-1, 1)
        if shard is not None:
            self.target_cosines.masked_fill_(rows != labels, 0)
        self.cosine_sum = -self.target_cosines.sum()  # blocks add all cosines
        if shard is not None:
            self.target_cosines = shard.total(self.target_cosines)
        self.r_intra = rescaling.pull(torch.acos(self.target_cosines))
        self.inter_losses = torch.zeros_like(self.target_cosines)  # each sample's
        self.nearest_other = embeddings.new_full((len(labels),), -1)
        self.norms = class_weight.new_empty(len(class_weight))
        if with_gradients:
            self.weighted_embeddings = self.unit_embeddings * factors[:, None]
            self.grad_unit_embeddings = torch.zeros_like(embeddings)  # before its rows are multiplied by `factors`
            self.grad_class_weight = torch.empty_like(class_weight)

    def run(self, block_size: int) -> None:
        is_whole = block_size >= len(self.class_weight) and self.shard is None
        for first in range(0, len(self.class_weight), block_size):
            classes = slice(first, min(first + block_size, len(self.class_weight)))
            weight = self.class_weight[classes]
            norms = torch.linalg.vector_norm(weight, dim=1, out=self.norms[classes]).clamp_min_(NORM_FLOOR)
            own, is_own = self.labels, None
            if not is_whole:
                is_own = (self.labels >= classes.start) & (self.labels < classes.stop)
                own = torch.where(is_own, self.labels - classes.start, 0)
            self._add(Block(classes, weight, norms, own, is_own))

    def result(self, reduction: Reduction) -> SFaceResult:
        batch_size, num_classes = len(self.labels), len(self.class_weight)
        if self.shard is not None:
            num_classes = self.shard.num_classes
            sums = self.shard.total(torch.cat([self.inter_losses, self.cosine_sum[None]]))
            self.inter_losses, self.cosine_sum = sums[:-1], sums[-1]
            self.nearest_other = self.shard.highest(self.nearest_other)
        intra_loss = reduced(-self.r_intra * self.target_cosines, self.factors, reduction)
        inter_loss = reduced(self.inter_losses, self.factors, reduction)
        return SFaceResult(
            loss=intra_loss + inter_loss,
            intra_loss=intra_loss,
            inter_loss=inter_loss,
            target_cosine=self.target_cosines.mean(),
            other_cosine=self.cosine_sum / (batch_size * (num_classes - 1)),
            accuracy=(self.target_cosines >= self.nearest_other).to(self.target_cosines.dtype).mean(),
            target_cosines=self.target_cosines,
        )

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Those of embeddings and class_weight."""
        grad_unit = self.grad_unit_embeddings * self.factors[:, None]
        return through_normalisation(grad_unit, self.unit_embeddings, self.embedding_norms), self.grad_class_weight

    def _add(self, block: Block) -> None:
        if self.compiled:
            self._add_compiled(block)
        else:
            cosines, _ = self._cosines(block)
            self._add_dense(block, cosines)

    def _cosines(self, block: Block) -> tuple[Tensor, Tensor]:
        """Cosines (N, B), -1 at the samples' own classes, and the largest of each row (N,)."""
        cosines = (self.unit_embeddings @ block.weight.T).div_(block.norms)
        self.cosine_sum += cosines.sum()
        block.fill(cosines, -1)
        highest = cosines.amax(1).clamp_max_(1)
        self.nearest_other = torch.maximum(self.nearest_other, highest)
        return cosines, highest

    def _add_dense(self, block: Block, cosines: Tensor) -> None:
        block.put(cosines, self.target_cosines)
        cosines.clamp_(-1, 1)
        g = self.rescaling.push(torch.acos(cosines))
        block.fill(g, 0)
        self.inter_losses += (g * cosines).sum(1)
        if self.with_gradients:
            block.put(g, -self.r_intra)
            g_by_norm = g.div_(block.norms)
            self._add_products(block, g_by_norm, self.factors @ (g_by_norm * cosines))

    def _add_compiled(self, block: Block) -> None:
        dots = block.weight @ self.unit_embeddings.T
        own = self.labels - block.classes.start
        g_by_norm, radial, inter_losses, cosine_sums, highest = _compiled()(
            dots, block.norms, own, self.target_cosines, self.r_intra, self.factors, self.rescaling.push
        )
        self.inter_losses += inter_losses
        self.cosine_sum += cosine_sums.sum()
        self.nearest_other = torch.maximum(self.nearest_other, highest)
        if self.with_gradients:
            self._add_products(block, g_by_norm.T, radial)

    def _add_products(self, block: Block, g_by_norm: Tensor, radial: Tensor) -> None:
        self.grad_unit_embeddings.addmm_(g_by_norm, block.weight)
        grad_weight = torch.mm(g_by_norm.T, self.weighted_embeddings, out=self.grad_class_weight[block.classes])
        grad_weight.addcmul_(block.weight, (radial / block.norms * (block.norms > NORM_FLOOR))[:, None], value=-1)


def through_normalisation(grad_unit: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """Gradient for v from that for v / max(||v||, NORM_FLOOR); at the floor that is a plain division."""
    radial = (grad_unit * unit).sum(1, keepdim=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / norms


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_dense_entries, dynamic=True)


def _dense_entries(
    dots: Tensor,
    norms: Tensor,
    own: Tensor,
    target_cosines: Tensor,
    r_intra: Tensor,
    factors: Tensor,
    push: Callable[[Tensor], Tensor],
) -> tuple[Tensor, ...]:
    """From a block's products (B, N): g / ||w||, three sums a class, and each sample's largest other cosine.

    The sums are those of factors g cos / ||w|| and cos a class, and of r_inter cos a sample. A row is a class, so that
    one kernel makes all of them.
    """
    is_target = torch.arange(len(dots), device=dots.device)[:, None] == own
    norms = norms[:, None]
    cosines = torch.where(is_target, target_cosines, (dots / norms).clamp(-1, 1))
    r_inter = torch.where(is_target, 0, push(torch.acos(cosines)))
    g_by_norm = torch.where(is_target, -r_intra, r_inter) / norms
    highest = torch.where(is_target, -1, cosines).amax(0)
    return g_by_norm, (g_by_norm * cosines * factors).sum(1), (r_inter * cosines).sum(0), cosines.sum(1), highest
