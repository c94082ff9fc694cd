"""The streamed form of SFace: one pass over blocks of classes, which gives the loss and both its gradients (Jittor).

With unit vectors x^ and w^, labels y and weights r as in `sface.py`:

    loss = mean_i( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )
    g[i,y_i] = -r_intra[i] / N,    g[i,j] = r_inter[i,j] / N
    dL/dx_i = (u_i - (u_i . x^_i) x^_i) / ||x_i||   with  u = g w^
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||   with  v = g' x^

No class needs another one, so no (N, C) matrix is held. `dense.py` computes every entry of g. Nearly all r_inter are
nearly 0, so on the CPU `skipping.py` computes only those at cosines from `least_cosine` on. This file gives the
gradients to autograd.
"""

import jittor as jt
from jittor import Var

from .dense import DensePass
from .sface import Rescaling, SFaceResult
from .skipping import SkippingPass


def streamed(
    embeddings: Var,
    class_weight: Var,
    labels: Var,
    rescaling: Rescaling,
    least_cosine: float,
    block_size: int | None,
) -> SFaceResult:
    """What `sface_loss` returns. Arguments are checked already and as there, embeddings in the dtype of class_weight.

    Args:
        rescaling: its `pull` and `push` may be any functions of theta.
        least_cosine: on the CPU, r_inter counts as 0 at lower cosines; -1: every entry counts.
    """
    if block_size is None:
        block_size = max(1, 2**24 // labels.shape[0]) if _on_gpu() else 2048
    function = _Streamed()
    loss = function(embeddings, class_weight, labels, rescaling, least_cosine, block_size)
    return SFaceResult(loss, *function.metrics)


class _Streamed(jt.Function):
    """Computes the gradients with the loss; `grad` only hands them out."""

    def execute(
        self,
        embeddings: Var,
        class_weight: Var,
        labels: Var,
        rescaling: Rescaling,
        least_cosine: float,
        block_size: int,
    ) -> Var:
        if _on_gpu():
            done = DensePass(embeddings, class_weight, labels, rescaling)
        else:
            done = SkippingPass(embeddings, class_weight, labels, rescaling, least_cosine)
        done.run(block_size)
        self.gradients = done.gradients()
        loss, *self.metrics = done.result()
        return loss

    def grad(self, grad_loss: Var) -> tuple[Var | None, ...]:
        gradients = self.gradients
        # a product with 1 would need a second gradient's memory; a CUDA device should not be waited for
        if _on_gpu() or grad_loss.item() != 1:
            gradients = grad_loss * gradients[0], grad_loss * gradients[1]
        return *gradients, *[None] * 4


def _on_gpu() -> bool:
    return bool(jt.flags.use_cuda)
