"""Layers whose Gluon originals are slow or crash, in MXNet. This file needs MXNet only."""

from mxnet import gluon, init
from mxnet.gluon import nn
from mxnet.symbol import Symbol


class PReLU(gluon.HybridBlock):
    """max(0, x) + weight min(0, x), one weight (C,) a channel of (N, C, H, W).

    Computed as weight x + (1 - weight) max(0, x), both products as 1x1 convolutions of single channels: these, the sum
    and max(0, x) are oneDNN's, and the feature maps stay in its layout. `nn.PReLU` is seven times slower on a CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._channels = channels
        with self.name_scope():
            self.weight = self.params.get("weight", shape=(channels,), init=init.Constant(0.25))

    def hybrid_forward(self, F, x: Symbol, weight: Symbol) -> Symbol:
        positive = F.LeakyReLU(x, act_type="leaky", slope=0.0)  # relu, twice as fast
        return self._times(F, x, weight) + self._times(F, positive, 1 - weight)

    def _times(self, F, x: Symbol, weight: Symbol) -> Symbol:
        kernels = F.reshape(weight, (-1, 1, 1, 1))
        return F.Convolution(
            x, kernels, kernel=(1, 1), num_filter=self._channels, num_group=self._channels, no_bias=True
        )


class BatchNorm1D(nn.BatchNorm):
    """Batch normalisation of (N, C), as (N, C, 1, 1): on a CPU, MXNet 1.9.1 crashes in inference on the former."""

    def hybrid_forward(self, F, x: Symbol, *parameters: Symbol, **named: Symbol) -> Symbol:
        x = F.reshape(x, (0, 0, 1, 1))
        return F.reshape(super().hybrid_forward(F, x, *parameters, **named), (0, 0))


def spread(F, values: Symbol, like: Symbol) -> Symbol:
    """`values` (N, C) over the cells of `like` (N, C, H, W).

    A product of matrices, whose gradient is another: MXNet's broadcasting sums gradients ten times slower on a CPU.
    """
    ones = F.ones_like(F.slice_axis(F.reshape(like, (-3, -3)), axis=0, begin=0, end=1))
    return F.reshape_like(F.dot(F.reshape(values, (-1, 1)), ones), like)
