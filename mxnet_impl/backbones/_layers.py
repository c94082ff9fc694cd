"""Layers that replace Gluon's, which are slow, crash or work in one process only. The file needs MXNet only."""

from collections.abc import Callable
from typing import Any

from mxnet import autograd, gluon, init, nd
from mxnet.gluon import nn
from mxnet.ndarray import NDArray
from mxnet.symbol import Symbol


class PReLU(gluon.HybridBlock):
    """max(0, x) + weight min(0, x), one weight (C,) a channel of (N, C, H, W).

    It computes weight x + (1 - weight) max(0, x). Both products are depthwise 1x1 convolutions. oneDNN has these, the
    sum and max(0, x), so the feature maps stay in its layout. `nn.PReLU` is seven times slower on a CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels = channels
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(channels,), init=init.Constant(0.25))

    def hybrid_forward(self, F: Any, x: Symbol, weight: Symbol) -> Symbol:
        positive = F.LeakyReLU(x, act_type="leaky", slope=0.0)  # relu, twice as fast
        return self._times(F, x, weight) + self._times(F, positive, 1 - weight)

    def _times(self, F: Any, x: Symbol, weight: Symbol) -> Symbol:
        kernels = F.reshape(weight, (-1, 1, 1, 1))
        return F.Convolution(
            x, kernels, kernel=(1, 1), num_filter=self._channels, num_group=self._channels, no_bias=True
        )


class BatchNorm1D(nn.BatchNorm):
    """Batch normalisation of (N, C), as (N, C, 1, 1): on (N, C), MXNet 1.9.1 crashes in inference on a CPU."""

    def hybrid_forward(self, F: Any, x: Symbol, *parameters: Symbol, **named: Symbol) -> Symbol:
        x = F.reshape(x, (0, 0, 1, 1))
        return F.reshape(super().hybrid_forward(F, x, *parameters, **named), (0, 0))


class SyncBatchNorm(nn.BatchNorm):
    """Batch normalisation of (N, C) and (N, C, H, W) over the batches of all ranks; it cannot be hybridised.

    A BatchNorm becomes one by `layer.__class__ = SyncBatchNorm`. MXNet's own layer of this name works in one process.
    """

    average: Callable[[str, NDArray], NDArray]  # elementwise over the ranks; the str names the array in this layer

    def forward(self, x: NDArray) -> NDArray:
        if not autograd.is_training():
            return super().forward(x.reshape((0, 0, -1, 1))).reshape(x.shape)
        standardised = _Standardise(self)(x.reshape((0, 0, -1)))
        weight, bias = (parameter.data().reshape((1, -1, 1)) for parameter in (self.gamma, self.beta))
        return nd.broadcast_add(nd.broadcast_mul(standardised, weight), bias).reshape(x.shape)


class _Standardise(autograd.Function):
    """Gives each channel of x (N, C, cells) mean 0 and variance 1 over all ranks; the layer stores both statistics."""

    def __init__(self, layer: SyncBatchNorm) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, x: NDArray) -> NDArray:
        mean = self._layer.average("forward", x.mean((0, 2)))
        centered = nd.broadcast_sub(x, mean.reshape((1, -1, 1)))
        variance = self._layer.average("forward", centered.square().mean((0, 2)))
        self._layer.running_mean.data()[:] = mean
        self._layer.running_var.data()[:] = variance
        self._inverse_std = (variance + self._layer._kwargs["eps"]).rsqrt().reshape((1, -1, 1))
        self._standardised = nd.broadcast_mul(centered, self._inverse_std)
        return self._standardised

    def backward(self, grad: NDArray) -> NDArray:
        along = nd.stack(grad.mean((0, 2)), (grad * self._standardised).mean((0, 2)))
        along_one, along_x = self._layer.average("backward", along).reshape((2, 1, -1, 1))
        rest = nd.broadcast_sub(grad, along_one) - nd.broadcast_mul(self._standardised, along_x)
        return nd.broadcast_mul(rest, self._inverse_std)


def spread(F: Any, values: Symbol, like: Symbol) -> Symbol:
    """Repeat `values` (N, C) for all cells of `like` (N, C, H, W).

    It is a matrix product, and so is its gradient: on a CPU, MXNet's broadcasting sums gradients ten times slower.
    """
    ones = F.ones_like(F.slice_axis(F.reshape(like, (-3, -3)), axis=0, begin=0, end=1))
    return F.reshape_like(F.dot(F.reshape(values, (-1, 1)), ones), like)
