"""The streamed form of SFace: one pass over blocks of classes, which gives the loss and both its gradients (Jittor).

With unit vectors x^ and w^, labels y and weights r as in `sface.py`:

    loss = sum_i f[i] ( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )      f: 1 / N for a mean
    g[i,y_i] = -f[i] r_intra[i],    g[i,j] = f[i] r_inter[i,j]
    dL/dx_i = (u_i - (u_i . x^_i) x^_i) / ||x_i||   with  u = g w^
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||   with  v = g' x^

No class needs another one, so no (N, C) matrix is held. `dense.py` computes every entry of g. Nearly all r_inter are
nearly 0, so on the CPU `skipping.py` computes only those at cosines from `least_cosine` on. This file gives the
gradients to autograd.
"""

from functools import partial

import jittor as jt
from jittor import Var

from .dense import DensePass
from .sface import Reduction, Rescaling, SFaceResult, full_precision
from .skipping import SkippingPass


def streamed(
    embeddings: Var,
    class_weight: Var,
    labels: Var,
    rescaling: Rescaling,
    factors: Var,
    reduction: Reduction,
    least_cosine: float,
    block_size: int | None,
) -> SFaceResult:
    """What `sface_loss` returns. Arguments are checked already and as there, all of one dtype.

    Args:
        rescaling: its `pull` and `push` may be any functions of theta.
        factors: of the samples' losses, (N,): sample_weight, and 1 / N for a mean.
        least_cosine: on the CPU, r_inter counts as 0 at lower cosines; -1: every entry counts.
    """
    if block_size is None:
        block_size = max(1, 2**24 // labels.shape[0]) if _on_gpu() else 2048
    if _on_gpu():
        make_pass = partial(DensePass, rescaling=rescaling)
    else:
        make_pass = partial(SkippingPass, rescaling=rescaling, least_cosine=least_cosine)
    function = _Streamed(make_pass, block_size, reduction, embeddings, class_weight, labels, factors)
    loss = function(embeddings, class_weight)
    return function.result._replace(loss=loss)


class _Streamed(jt.Function):
    """The loss, and for `jt.grad` both gradients; `result` has the metrics."""

    def __init__(self, make_pass, block_size: int, reduction: Reduction, *inputs: Var) -> None:
        super().__init__()
        self.make_pass, self.block_size, self.reduction = make_pass, block_size, reduction
        self.inputs = inputs  # those of `execute` have no gradients of their own

    def execute(self, embeddings: Var, class_weight: Var) -> Var:
        is_differentiated = not (jt.flags.no_grad or (embeddings.is_stop_grad() and class_weight.is_stop_grad()))
        # gradients come with the loss, unless a factor of each sample's is yet to come
        done = self._run(*self.inputs, with_gradients=is_differentiated and self.reduction != "none")
        self.gradients = done.gradients() if done.with_gradients else None
        self.result = done.result(self.reduction)
        return self.result.loss

    def grad(self, grad_loss: Var) -> tuple[Var, ...]:
        *inputs, factors = self.inputs
        gradients = self.gradients
        if gradients is None:
            gradients = self._run(*inputs, factors * grad_loss, with_gradients=True).gradients()
        # a product with 1 would need a second gradient's memory; a CUDA device should not be waited for
        elif _on_gpu() or grad_loss.item() != 1:
            gradients = grad_loss * gradients[0], grad_loss * gradients[1]
        return _Once()(*gradients, *inputs[:2])

    def _run(self, *inputs: Var, with_gradients: bool) -> DensePass:
        with full_precision():
            done = self.make_pass(*inputs, with_gradients=with_gradients)
            done.run(self.block_size)
        return done


class _Once(jt.Function):
    """Gradients that refuse to be differentiated: r would have to be computed with them."""

    def execute(self, grad_embeddings: Var, grad_class_weight: Var, *_: Var) -> tuple[Var, Var]:
        return grad_embeddings, grad_class_weight

    def grad(self, *_: Var) -> None:
        raise RuntimeError('sface_loss: the streamed form can be differentiated once; form="plain" twice')


def _on_gpu() -> bool:
    return bool(jt.flags.use_cuda)
