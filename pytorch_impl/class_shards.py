"""SFace with its prototypes in shards of classes: each rank holds a share of them, with their momentum.

SFace has no normaliser over classes, so ranks exchange no logits and nothing for a normaliser, but only

    forward     all embeddings and labels (all-gather); the cosine of each sample with its own prototype and, for the
                accuracy, with the nearest other one; two sums for loss and metrics
    backward    the gradients of the embeddings (reduce-scatter)

besides the backbone's gradients. Loss and gradients are those of one process on the whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pytorch_impl.distributed import Group
from pytorch_impl.losses import SFaceHead, SFaceResult, Shard
from pytorch_impl.losses.sface import check_inputs


class ShardedSFaceHead(SFaceHead):
    """SFace on this rank's share of the classes, for the embeddings of all ranks; the options are SFaceHead's.

    The form is always "streamed".

    `forward` takes this rank's embeddings (N / ranks, D), labels and sample weights (N / ranks,). Its result is that of
    the whole batch, the same on all ranks. DistributedDataParallel averages gradients over ranks, so the gradients of
    the embeddings are `ranks` times those of the whole batch's loss.

    Raises:
        ValueError: there are fewer classes than ranks, or as `sface_loss`.
    """

    def __init__(self, group: Group, embedding_size: int, num_classes: int, **options: Any) -> None:
        if num_classes < group.count:
            raise ValueError(f"expected at least as many identities as devices, got {num_classes} and {group.count}")
        share = group.share(num_classes)
        super().__init__(embedding_size, share.stop - share.start, **{**options, "form": "streamed"})
        self.first = share.start
        self.group = group
        self.shard: Shard = Shard(num_classes, group.sum, group.maximum)

    def forward(self, embeddings: Tensor, labels: Tensor, sample_weight: Tensor | None = None) -> SFaceResult:
        check_inputs(embeddings, self.class_weight, labels, sample_weight, num_classes=self.shard.num_classes)
        embeddings, labels = gathered(embeddings.to(self.class_weight.dtype), labels.long(), self.group)
        if sample_weight is not None:
            sample_weight = _gathered(sample_weight, self.group.count)
        return super().forward(embeddings, labels - self.first, sample_weight)


def gathered(embeddings: Tensor, labels: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and labels (N,) of all ranks, from this rank's (N / ranks, D) and (N / ranks,).

    The gradient of its own embeddings is `ranks` times the sum of all ranks' gradients for them.
    """
    return _Gather.apply(embeddings, group.count), _gathered(labels, group.count)


class _Gather(torch.autograd.Function):
    """All ranks' rows in the order of ranks; backward: the sum of all ranks' gradients for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        ctx.count = count
        return _gathered(rows, count)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        part = grad.new_empty(len(grad) // ctx.count, *grad.shape[1:])
        dist.reduce_scatter_single(part, grad.contiguous())
        return part.mul_(ctx.count), None


def _gathered(rows: Tensor, count: int) -> Tensor:
    whole = rows.new_empty(count * len(rows), *rows.shape[1:])
    dist.all_gather_single(whole, rows.detach().contiguous())
    return whole
