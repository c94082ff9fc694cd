"""The streamed form of SFace: one pass over blocks of classes, which gives the loss and both its gradients (PyTorch).

With unit vectors x^ and w^, labels y and weights r as in `sface.py`:

    loss = mean_i( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )
    g[i,y_i] = -r_intra[i] / N,    g[i,j] = r_inter[i,j] / N
    dL/dx_i = (u_i - (u_i . x^_i) x^_i) / ||x_i||   with  u = g w^
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||   with  v = g' x^

No class needs another one, so no (N, C) matrix is held. `dense.py` computes every entry of g. Nearly all r_inter are
nearly 0, so on the CPU `skipping.py` computes only those at cosines from `least_cosine` on. This file gives the
gradients to autograd.
"""

from functools import partial

import torch
from torch import Tensor

from .dense import DensePass
from .sface import Rescaling, SFaceResult, Shard
from .skipping import SkippingPass


def streamed(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
    rescaling: Rescaling,
    least_cosine: float,
    block_size: int | None,
    *,
    compiled: bool = False,
    shard: Shard | None = None,
) -> SFaceResult:
    """What `sface_loss` returns. Arguments are checked already and as there, embeddings in the dtype of class_weight.

    Args:
        rescaling: its `pull` and `push` may be any functions of theta.
        least_cosine: on the CPU, r_inter counts as 0 at lower cosines; -1: every entry counts.
    """
    if block_size is None:
        block_size = 2048 if embeddings.device.type == "cpu" else max(1, 2**24 // len(labels))
    if least_cosine > -1 and embeddings.device.type == "cpu":
        make_pass = partial(SkippingPass, rescaling=rescaling, least_cosine=least_cosine, shard=shard)
    else:
        make_pass = partial(DensePass, rescaling=rescaling, compiled=compiled, shard=shard)
    return SFaceResult(*_Streamed.apply(embeddings, class_weight, labels, make_pass, block_size))


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, class_weight, labels, make_pass, block_size):
        ctx.save_for_backward(embeddings, class_weight, labels)
        ctx.make_pass, ctx.block_size = make_pass, block_size
        done = make_pass(embeddings, class_weight, labels)
        done.run(block_size)
        ctx.gradients, result = done.gradients(), done.result()
        ctx.mark_non_differentiable(*result[1:])
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, *_):
        # given away, so that there is no second (C, D) tensor; a second backward pass computes them again
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            done = ctx.make_pass(*ctx.saved_tensors)
            done.run(ctx.block_size)
            gradients = done.gradients()
        if grad_loss.device.type != "cpu" or grad_loss != 1:
            for gradient in gradients:
                gradient.mul_(grad_loss)
        return *gradients, None, None, None
