"""The streamed form of SFace: one pass over blocks of classes, which gives the loss and both its gradients (MXNet).

With unit vectors x^ and w^, labels y and weights r as in `sface.py`:

    loss = mean_i( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )
    g[i,y_i] = -r_intra[i] / N,    g[i,j] = r_inter[i,j] / N
    dL/dx_i = (u_i - (u_i . x^_i) x^_i) / ||x_i||   with  u = g w^
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||   with  v = g' x^

No class needs another one, so no (N, C) matrix is held. `dense.py` computes every entry of g. Nearly all r_inter are
nearly 0, so on the CPU `skipping.py` computes only those at cosines from `least_cosine` on. This file gives the
gradients to autograd.

Neither way is an autograd.Function: that of MXNet 1.9.1 drops the gradients of all inputs after one that needs none,
and those of grad_req "add".
"""

from typing import Any
from weakref import WeakValueDictionary

import mxnet as mx
from mxnet import autograd, nd
from mxnet.ndarray import NDArray

from .dense import DensePass
from .sface import Rescaling, SFaceResult
from .skipping import SkippingPass, memory


def streamed(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    rescaling: Rescaling,
    least_cosine: float,
    block_size: int | None,
) -> SFaceResult:
    """What `sface_loss` returns. Arguments are checked already and as there.

    Memory beside the inputs and their gradients: O(N * block_size); on the CPU also 8 bytes for each entry that is
    computed, in blocks where these are few; on a CUDA device one more gradient of class_weight.

    Args:
        rescaling: its `pull` and `push` may be any functions of theta.
        least_cosine: on the CPU, r_inter counts as 0 at lower cosines; -1: every entry counts.
    """
    if embeddings.context.device_type == "cpu":
        return _skipping(embeddings, class_weight, labels, rescaling, least_cosine, block_size or 2048)
    return _dense(embeddings, class_weight, labels, rescaling, block_size or max(1, 2**24 // len(labels)))


def _dense(
    embeddings: NDArray, class_weight: NDArray, labels: NDArray, rescaling: Rescaling, block_size: int
) -> SFaceResult:
    with autograd.pause():
        done = DensePass(embeddings, class_weight, labels, rescaling)
        done.run(block_size)
        result, gradients = SFaceResult(*done.result()), done.gradients()
    loss = result.loss
    for variable, gradient in zip((embeddings, class_weight), gradients, strict=True):
        product = nd.dot(variable.reshape(-1), gradient.reshape(-1))
        loss = loss + (product - product.detach())  # 0, with `gradient` as its gradient for `variable`
    return result._replace(loss=loss)


def _skipping(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    rescaling: Rescaling,
    least_cosine: float,
    block_size: int,
) -> SFaceResult:
    with autograd.pause():
        operator = _Operator(labels.asnumpy(), rescaling, least_cosine, block_size)
        values = operator.run(embeddings, class_weight)
        result = SFaceResult(*(nd.array([value], embeddings.context, embeddings.dtype) for value in values))
    if not autograd.is_recording():
        return result
    _operators[key := str(id(operator))] = operator
    return result._replace(loss=nd.Custom(embeddings, class_weight, op_type="sface_streamed", key=key))


class _Operator(mx.operator.CustomOp):
    """A pass whose gradients are written where MXNet holds them, so that there is one gradient of class_weight."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments

    def run(self, embeddings: NDArray, class_weight: NDArray) -> tuple[float, ...]:
        self.current: SkippingPass | None = SkippingPass(*self.arguments)
        self.result = self.current.run(memory(embeddings), memory(class_weight))
        return self.result

    def forward(self, is_train, req, in_data, out_data, aux) -> None:
        self.assign(out_data[0], req[0], self.result[0])

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux) -> None:
        if self.current is None:  # not the first time
            self.run(*in_data)
        grad_class_weight = None if req[1] == "null" else memory(in_grad[1])
        grad_embeddings = self.current.gradients(
            memory(in_data[1]), grad_class_weight, out_grad[0].asscalar(), add=req[1] == "add"
        )
        self.assign(in_grad[0], req[0], nd.array(grad_embeddings, in_grad[0].context, grad_embeddings.dtype))
        self.current = None  # MXNet's operators are in reference cycles: this one may stay until they are collected


# MXNet passes only strings to an operator
_operators: WeakValueDictionary[str, _Operator] = WeakValueDictionary()


@mx.operator.register("sface_streamed")
class _OperatorProp(mx.operator.CustomOpProp):
    def __init__(self, key: str) -> None:
        super().__init__(need_top_grad=True)
        self.operator = _operators[key]

    def list_arguments(self) -> list[str]:
        return ["embeddings", "class_weight"]

    def infer_shape(self, in_shape):
        return in_shape, [(1,)], []

    def create_operator(self, ctx, in_shapes, in_dtypes) -> _Operator:
        return self.operator
