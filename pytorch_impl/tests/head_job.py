"""python -m pytorch_impl.tests.head_job IN.npz OUT.npz: sharded heads on this rank's samples of several problems.

IN holds embeddings.K, class_weight.K and labels.K of problem K, OUT SFace's loss, metrics and both gradients, and as
softmax_embeddings.K and softmax_class_weight.K the gradients of the softmax that `benchmarks scale` measures.
"""

import sys

import numpy as np
import torch

from benchmarks.backends.pytorch.sharded_forms import sharded_softmax
from pytorch_impl import distributed
from pytorch_impl.class_shards import ShardedSFaceHead


def main(problems: str, out: str) -> None:
    group = distributed.join(torch.device("cpu"))
    given, found = np.load(problems), {}
    for key in sorted({name.partition(".")[2] for name in given}):
        x, w, labels = (torch.from_numpy(given[f"{name}.{key}"]) for name in ("embeddings", "class_weight", "labels"))
        head = ShardedSFaceHead(group, w.shape[1], len(w)).to(w.dtype)
        with torch.no_grad():
            head.class_weight.copy_(w[group.share(len(w))])
        share = len(x) // group.count
        mine = slice(group.rank * share, (group.rank + 1) * share)
        local = x[mine].clone().requires_grad_()
        result = head(local, labels[mine])
        result.loss.backward()
        found |= {f"{name}.{key}": value.detach().numpy() for name, value in result._asdict().items()}
        # what data parallelism makes of it: the mean over ranks
        found[f"grad_embeddings.{key}"] = group.joined(local.grad / group.count, len(x))
        found[f"grad_class_weight.{key}"] = group.joined(head.class_weight.grad, len(w))
        local.grad = head.class_weight.grad = None
        sharded_softmax(group, local, labels[mine], head.class_weight, head.first).backward()
        found[f"softmax_embeddings.{key}"] = group.joined(local.grad / group.count, len(x))
        found[f"softmax_class_weight.{key}"] = group.joined(head.class_weight.grad, len(w))
    if group.rank == 0:
        np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
