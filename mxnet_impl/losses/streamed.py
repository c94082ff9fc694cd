"""The streamed form of SFace: one pass over blocks of classes, which gives the loss and both its gradients (MXNet).

With unit vectors x^ and w^, labels y and weights r as in `sface.py`:

    loss = sum_i f[i] ( -r_intra[i] cos[i,y_i]  +  sum_{j != y_i} r_inter[i,j] cos[i,j] )      f: 1 / N for a mean
    g[i,y_i] = -f[i] r_intra[i],    g[i,j] = f[i] r_inter[i,j]
    dL/dx_i = (u_i - (u_i . x^_i) x^_i) / ||x_i||   with  u = g w^
    dL/dw_j = (v_j - (v_j . w^_j) w^_j) / ||w_j||   with  v = g' x^

No class needs another one, so no (N, C) matrix is held. `dense.py` computes every entry of g. Nearly all r_inter are
nearly 0, so on the CPU `skipping.py` computes only those at cosines from `least_cosine` on. This file gives the
gradients to autograd.

Neither way is an autograd.Function: that of MXNet 1.9.1 drops the gradients of all inputs after one that needs none,
and those of grad_req "add".
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import mxnet as mx
from mxnet import autograd, nd
from mxnet.ndarray import NDArray

from .dense import DensePass
from .sface import Reduction, Rescaling, SFaceResult
from .skipping import SkippingPass, memory


def streamed(
    embeddings: NDArray,
    class_weight: NDArray,
    labels: NDArray,
    rescaling: Rescaling,
    factors: NDArray,
    reduction: Reduction,
    least_cosine: float,
    block_size: int | None,
) -> SFaceResult:
    """What `sface_loss` returns. Arguments are checked already and as there, all of one dtype.

    Memory beside the inputs and their gradients: O(N * block_size); on the CPU also 8 bytes for each entry that is
    computed, in blocks where these are few; on a CUDA device one more gradient of class_weight.

    Args:
        rescaling: its `pull` and `push` may be any functions of theta.
        factors: of the samples' losses, (N,): sample_weight, and 1 / N for a mean.
        least_cosine: on the CPU, r_inter counts as 0 at lower cosines; -1: every entry counts.
    """
    if embeddings.context.device_type == "cpu":
        run = partial(_skipping, labels.asnumpy(), rescaling, least_cosine, block_size or 2048)
    else:
        run = partial(_dense, labels, rescaling, block_size or max(1, 2**24 // len(labels)))
    return _differentiable(run, embeddings, class_weight, factors, reduction)


def _dense(
    labels: NDArray, rescaling: Rescaling, block_size: int, *inputs: NDArray, with_gradients: bool = True
) -> DensePass:
    embeddings, class_weight, factors = inputs
    done = DensePass(embeddings, class_weight, labels, factors, rescaling, with_gradients=with_gradients)
    done.run(block_size)
    return done


def _skipping(
    labels: Any,  # of NumPy
    rescaling: Rescaling,
    least_cosine: float,
    block_size: int,
    *inputs: NDArray,
    with_gradients: bool = True,
) -> SkippingPass:
    embeddings, class_weight, factors = map(memory, inputs)
    done = SkippingPass(labels, factors, rescaling, least_cosine, block_size, with_gradients=with_gradients)
    done.run(embeddings, class_weight)
    return done


def _differentiable(
    run: Callable[..., Any], embeddings: NDArray, class_weight: NDArray, factors: NDArray, reduction: Reduction
) -> SFaceResult:
    """The result of a pass that `run` makes; under `autograd.record()` its loss has gradients."""
    is_recording = autograd.is_recording()
    with autograd.pause():
        # gradients come with the loss, unless a factor of each sample's is yet to come
        done = run(embeddings, class_weight, factors, with_gradients=is_recording and reduction != "none")
        result = done.result(reduction)
    if not is_recording:
        return result
    loss = result.loss
    if isinstance(done, SkippingPass):
        operator = _SkippingOperator(run, factors, loss, done if done.with_gradients else None)
        loss = operator.apply(embeddings, class_weight)
    elif reduction == "none":
        loss = _DenseOperator(run, factors, loss).apply(embeddings, class_weight)
    else:
        for variable, gradient in zip((embeddings, class_weight), done.gradients(), strict=True):
            product = nd.dot(variable.reshape(-1), gradient.reshape(-1))
            loss = loss + (product - product.detach())  # 0, with `gradient` as its gradient for `variable`
    return result._replace(loss=loss)


class _Operator(mx.operator.CustomOp):
    """A loss that is known already, for autograd; `run` makes a pass with gradients, `done` may be one."""

    def __init__(self, run: Callable[..., Any], factors: NDArray, loss: NDArray, done: Any = None) -> None:
        super().__init__()
        self.run, self.factors, self.loss, self.done = run, factors, loss, done

    def apply(self, embeddings: NDArray, class_weight: NDArray) -> NDArray:
        _operators[key := str(id(self))] = self
        return nd.Custom(embeddings, class_weight, op_type="sface_streamed", key=key)

    def forward(self, is_train, req, in_data, out_data, aux) -> None:
        self.assign(out_data[0], req[0], self.loss)


class _DenseOperator(_Operator):
    """Its gradients are computed in the backward pass, with a factor of each sample's."""

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux) -> None:
        gradients = self.run(*in_data, self.factors * out_grad[0]).gradients()
        for place, request, gradient in zip(in_grad, req, gradients, strict=True):
            self.assign(place, request, gradient)


class _SkippingOperator(_Operator):
    """Its gradients are written where MXNet holds them, so that there is one gradient of class_weight."""

    def backward(self, req, out_grad, in_data, out_data, in_grad, aux) -> None:
        # given away: MXNet's operators are in reference cycles, this one may stay until they are collected
        done, self.done = self.done, None
        factor = out_grad[0].asnumpy()
        if done is None:  # not the first time, or a factor of each sample's
            done, factor = self.run(*in_data, self.factors * out_grad[0]), 1
        grad_class_weight = None if req[1] == "null" else memory(in_grad[1])
        grad_embeddings = done.gradients(memory(in_data[1]), grad_class_weight, factor, add=req[1] == "add")
        self.assign(in_grad[0], req[0], nd.array(grad_embeddings, in_grad[0].context, grad_embeddings.dtype))


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
        return in_shape, [self.operator.loss.shape], []

    def create_operator(self, ctx, in_shapes, in_dtypes) -> _Operator:
        return self.operator
