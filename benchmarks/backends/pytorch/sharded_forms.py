"""Heads on several ranks, each with its update, which `python -m benchmarks scale` compares."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pytorch_impl import runtime
from pytorch_impl.class_shards import ShardedSFaceHead, gathered
from pytorch_impl.distributed import Group, join
from pytorch_impl.losses.sface import SFaceHead
from pytorch_impl.optimizer import create_optimizer, set_learning_rate


def group() -> Group:
    """All ranks of this job, on the CPU."""
    found = join(runtime.resolve_device("cpu"))
    assert isinstance(found, Group)
    return found


def sharded_forms(name: str, classes: int, batch: int, dim: int) -> Callable[[], None]:
    """A function that makes one step of the head: forward, backward to the embeddings, update of the prototypes.

    Args:
        name: "data parallel" (SFace; every rank holds all classes and gradients are summed), "sharded softmax"
            (normalised, with cross-entropy), "sharded sface", or "exchange": its communication without the head.
        classes: of all ranks.
        batch: samples of this rank.
        dim: of an embedding.
    """
    ranks = group()
    torch.manual_seed(ranks.rank)
    embeddings = torch.randn(batch, dim, requires_grad=True)
    labels = torch.randint(classes, (batch,))
    if name == "exchange":
        return lambda: exchange(ranks, embeddings, labels)
    if name == "data parallel":
        head = SFaceHead(dim, classes)
    elif name == "sharded sface":
        head = ShardedSFaceHead(ranks, dim, classes)
    else:
        share = ranks.share(classes)
        head = SFaceHead(dim, share.stop - share.start)
    optimizer = create_optimizer([head], momentum=0.9, weight_decay=5e-4)
    set_learning_rate(optimizer, 1e-3)

    def step() -> None:
        embeddings.grad = None
        optimizer.zero_grad()
        if name == "sharded softmax":
            loss = sharded_softmax(ranks, embeddings, labels, head.class_weight, ranks.share(classes).start)
        else:
            loss = head(embeddings, labels).loss
        loss.backward()
        if name == "data parallel":
            ranks.sum(head.class_weight.grad).div_(ranks.count)
        optimizer.step()

    return step


def exchange(ranks: Group, embeddings: Tensor, labels: Tensor) -> None:
    """The communication of a sharded SFace: embeddings and labels, two values a sample, two sums, the gradients."""
    x, _ = gathered(embeddings, labels, ranks)
    for combined, size in ((ranks.sum, len(x)), (ranks.sum, 2), (ranks.maximum, len(x))):
        combined(torch.zeros(size))
    x.backward(torch.ones_like(x))


def sharded_softmax(ranks: Group, embeddings: Tensor, labels: Tensor, class_weight: Tensor, first: int) -> Tensor:
    """Cross-entropy of 64 cos over the classes of all ranks; they exchange each sample's maximum and sum."""
    x, labels = gathered(embeddings, labels, ranks)
    logits = 64 * F.normalize(x) @ F.normalize(class_weight).T
    with torch.no_grad():
        highest = ranks.maximum(logits.amax(1))
        exponentials = (logits - highest[:, None]).exp_()
        p = exponentials.div_(ranks.sum(exponentials.sum(1))[:, None])
        here = ((labels >= first) & (labels < first + len(class_weight))).nonzero()[:, 0]
        p[here, labels[here] - first] -= 1
    return (logits * p).sum() / len(x)  # its gradient is that of the loss, its value is not
