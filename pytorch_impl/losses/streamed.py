"""The streamed form of SFace: one pass over blocks of classes, which gives the loss and both its gradients (PyTorch).

With unit vectors x^ and w^, labels y and weights r as in `sface.py`:

    loss = sum_i f[i] ( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )      f: 1 / N for a mean
    g[i,y_i] = -r_intra[i],    g[i,j] = r_inter[i,j]
    dL/dx_i = f[i] (u_i - (u_i . x^_i) x^_i) / ||x_i||   with  u = g w^
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||        with  v = g' (f x^)

No class needs another one, so no (N, C) matrix is held. `dense.py` computes every entry of g. Nearly all r_inter are
nearly 0, so on the CPU `skipping.py` computes only those at cosines from `least_cosine` on; `compacting.py` does so on
any device. This file gives the gradients to autograd.
"""

from functools import partial

import torch
from torch import Tensor

from .compacting import CompactingPass
from .dense import DensePass
from .sface import Reduction, Rescaling, SFaceResult, Shard, full_precision
from .skipping import SkippingPass

_SMALL = 2**15  # entries; with fewer, computing all is faster than looking for those that count


def streamed(
    embeddings: Tensor,
    class_weight: Tensor,
    labels: Tensor,
    rescaling: Rescaling,
    factors: Tensor,
    reduction: Reduction,
    least_cosine: float,
    block_size: int | None,
    *,
    screened: bool | None = None,
    compiled: bool = False,
    shard: Shard | None = None,
) -> SFaceResult:
    """What `sface_loss` returns. Arguments are checked already and as there, all of one dtype.

    Args:
        rescaling: its `pull` and `push` may be any functions of theta.
        factors: of the samples' losses, (N,): sample_weight, and 1 / N for a mean.
        least_cosine: where entries are left out, r_inter counts as 0 at lower cosines; -1: every entry counts.
    """
    on_cpu, leaves_out = embeddings.device.type == "cpu", least_cosine > -1
    is_small = on_cpu and block_size is None and len(labels) * len(class_weight) < _SMALL
    if leaves_out and screened:
        make_pass = partial(CompactingPass, rescaling=rescaling, least_cosine=least_cosine, shard=shard)
    elif leaves_out and screened is None and on_cpu and not is_small:
        make_pass = partial(SkippingPass, rescaling=rescaling, least_cosine=least_cosine, shard=shard)
    else:
        compiled = compiled and not (is_small and leaves_out)  # no run compiles because it is small
        make_pass = partial(DensePass, rescaling=rescaling, compiled=compiled, shard=shard)
    if block_size is None:
        block_size = 2048 if on_cpu else max(1, (2**23 if screened else 2**24) // len(labels))
    is_differentiated = torch.is_grad_enabled() and (embeddings.requires_grad or class_weight.requires_grad)
    # gradients come with the loss, unless a factor of each sample's is yet to come
    make_pass = partial(make_pass, with_gradients=is_differentiated and reduction != "none")
    function = _Streamed
    if not torch._C._are_functorch_transforms_active():
        function = super(torch.autograd.Function, _Streamed)  # Function.apply takes a fifth of a small problem's time
    *result, _, _ = function.apply(embeddings, class_weight, labels, factors, make_pass, block_size, reduction)
    return SFaceResult(*result)


class _Streamed(torch.autograd.Function):
    """The result, and for autograd both gradients."""

    @staticmethod
    def forward(embeddings, class_weight, labels, factors, make_pass, block_size, reduction):
        done = _run(make_pass, block_size, embeddings, class_weight, labels, factors)
        gradients = done.gradients() if done.with_gradients else (None, None)
        return *done.result(reduction), *gradients

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:4])
        ctx.make_pass, ctx.block_size, ctx.reduction = inputs[4:]
        ctx.gradients = output[-2:]
        ctx.set_materialize_grads(False)  # else backward is given zeros for each output, one of them (C, D)
        ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))

    @staticmethod
    def backward(ctx, grad_loss, *_):
        inputs = ctx.saved_tensors
        with torch.no_grad():
            gradients = _gradients(ctx, grad_loss)
        if torch.is_grad_enabled():
            gradients = _Once.apply(*gradients, *inputs[:2])
        return *gradients, *[None] * 5

    @staticmethod
    def vmap(*_):
        raise RuntimeError('sface_loss: the streamed form does not work under vmap; form="plain" does')


class _Once(torch.autograd.Function):
    """Gradients that refuse to be differentiated: r would have to be computed with them."""

    @staticmethod
    def forward(grad_embeddings, grad_class_weight, embeddings, class_weight):
        return grad_embeddings.view_as(grad_embeddings), grad_class_weight.view_as(grad_class_weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError('sface_loss: the streamed form can be differentiated once; form="plain" twice')


def _gradients(ctx, grad_loss: Tensor) -> tuple[Tensor, Tensor]:
    # given away, so that there is no second (C, D) tensor; a second backward pass computes them again
    gradients, ctx.gradients = ctx.gradients, (None, None)
    *inputs, factors = ctx.saved_tensors
    if ctx.reduction == "none":
        factors, grad_loss = factors * grad_loss, factors.new_ones(())
    if gradients[0] is None:
        make_pass = partial(ctx.make_pass, with_gradients=True)
        gradients = _run(make_pass, ctx.block_size, *inputs, factors).gradients()
    if grad_loss.device.type != "cpu" or grad_loss != 1:
        for gradient in gradients:
            gradient.mul_(grad_loss)
    return gradients


def _run(make_pass, block_size: int, *inputs: Tensor) -> DensePass:
    with full_precision():
        done = make_pass(*inputs)
        done.run(block_size)
    return done
