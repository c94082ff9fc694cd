"""python -m pytorch_impl.tests.head_job IN.npz OUT.npz: sharded heads on this rank's samples of several problems.

IN holds embeddings.K, class_weight.K, labels.K, reduction.K and perhaps sample_weight.K of problem K; the head of a
K that ends with "screened" is screened. OUT holds SFace's
loss, metrics and both gradients, and as softmax_embeddings.K and softmax_class_weight.K the gradients of the softmax
that `benchmarks scale` measures.
"""

import sys

import numpy as np
import pytest
import torch

from benchmarks.backends.pytorch.sharded_forms import sharded_softmax
from pytorch_impl import distributed
from pytorch_impl.class_shards import ShardedSFaceHead


def main(problems: str, out: str) -> None:
    group = distributed.join(torch.device("cpu"))
    given, found = np.load(problems), {}
    check_labels_are_refused(group)
    for key in sorted({name.partition(".")[2] for name in given}):
        x, w, labels = (torch.from_numpy(given[f"{name}.{key}"]) for name in ("embeddings", "class_weight", "labels"))
        weights = torch.from_numpy(given[name]) if (name := f"sample_weight.{key}") in given else None
        options = {"reduction": str(given[f"reduction.{key}"]), "screened": key.endswith("screened") or None}
        head = ShardedSFaceHead(group, w.shape[1], len(w), **options).to(w.dtype)
        with torch.no_grad():
            head.class_weight.copy_(w[group.share(len(w))])
        share = len(x) // group.count
        mine = slice(group.rank * share, (group.rank + 1) * share)
        local = x[mine].clone().requires_grad_()
        result = head(local, labels[mine], None if weights is None else weights[mine])
        result.loss.sum().backward()
        found |= {f"{name}.{key}": v.detach().numpy() for name, v in result._asdict().items() if v is not None}
        # what data parallelism makes of it: the mean over ranks
        found[f"grad_embeddings.{key}"] = group.joined(local.grad / group.count, len(x))
        found[f"grad_class_weight.{key}"] = group.joined(head.class_weight.grad, len(w))
        local.grad = head.class_weight.grad = None
        sharded_softmax(group, local, labels[mine], head.class_weight, head.first).backward()
        found[f"softmax_embeddings.{key}"] = group.joined(local.grad / group.count, len(x))
        found[f"softmax_class_weight.{key}"] = group.joined(head.class_weight.grad, len(w))
    if group.rank == 0:
        np.savez(out, **found)


def check_labels_are_refused(group: distributed.Group) -> None:
    head = ShardedSFaceHead(group, 3, 8)
    for label in (-1, 8):
        with pytest.raises(ValueError, match=rf"labels: expected 0\.\.7, got {label} at row 0"):
            head(torch.ones(1, 3), torch.tensor([label]))


if __name__ == "__main__":
    main(*sys.argv[1:])
