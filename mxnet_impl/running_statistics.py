"""Running means and variances as PyTorch keeps them, for MXNet's BatchNorm.

Both normalise by the biased variance of the batch. PyTorch then moves the running variance towards the unbiased one,
n / (n - 1) times as large for n values a channel; MXNet towards the biased one, and it holds the share 0.9 in float32,
also in a float64 network. A checkpoint must mean the same to every backend. So MXNet is told to keep nothing of the
past, and what it then stores in its backward pass, the batch's own statistics, is averaged here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from mxnet import gluon, nd
from mxnet.gluon import nn
from mxnet.ndarray import NDArray

KEPT = 0.9  # of a running statistic, a step


class RunningStatistics:
    """The running statistics of a network, whose BatchNorm layers it changes: train it inside `follow` from now on.

    Means and variances of all layers become parts of two arrays, so that no step has to join them.

    Args:
        network: initialised, not hybridised yet.
        images: (N, 3, S, S), of the size that the network takes; their values do not matter.
    """

    def __init__(self, network: gluon.HybridBlock, images: NDArray) -> None:
        self._layers: list[nn.BatchNorm] = []
        self._cells: list[int] = []
        self._factors: dict[int, NDArray] = {}
        handles = []

        def remember(layer: nn.BatchNorm, inputs: tuple[NDArray, ...]) -> None:
            self._layers.append(layer)
            self._cells.append(inputs[0].size // (len(inputs[0]) * inputs[0].shape[1]))

        def prepare(layer: gluon.Block) -> None:
            if isinstance(layer, nn.BatchNorm):
                layer._kwargs["momentum"] = 0.0
                handles.append(layer.register_forward_pre_hook(remember))

        network.apply(prepare)
        # In inference the engine reorders the weights of convolutions, and who copies a weight out while the pass runs
        # does not wait for that: a weight was wrong in four of five hundred networks.
        network(images).wait_to_read()
        for handle in handles:
            handle.detach()
        self._means = _joined([layer.running_mean for layer in self._layers])
        self._variances = _joined([layer.running_var for layer in self._layers])

    @contextmanager
    def follow(self, batch_size: int) -> Iterator[None]:
        """Around one forward and backward pass of `batch_size` images.

        Raises:
            ValueError: a channel has a single value, whose variance says nothing.
        """
        if batch_size * min(self._cells) < 2:
            raise ValueError(f"expected more than 1 value per channel when training, got a batch of {batch_size}")
        means, variances = self._means.copy(), self._variances.copy()
        yield
        self._means[:] = KEPT * means + (1 - KEPT) * self._means
        self._variances[:] = KEPT * variances + (1 - KEPT) * self._factor(batch_size) * self._variances

    def _factor(self, batch_size: int) -> NDArray:
        """n / (n - 1) of every channel."""
        if batch_size not in self._factors:
            counts = [batch_size * cells for cells in self._cells]
            self._factors[batch_size] = nd.concat(
                *[
                    nd.ones_like(layer.running_var.data()) * (n / (n - 1))
                    for n, layer in zip(counts, self._layers, strict=True)
                ],
                dim=0,
            )
        return self._factors[batch_size]


def _joined(parameters: list[gluon.Parameter]) -> NDArray:
    """One array of all, of which each parameter is a part from now on."""
    joined = nd.concat(*[parameter.data() for parameter in parameters], dim=0)
    start = 0
    for parameter in parameters:
        end = start + parameter.shape[0]
        parameter._data = [joined[start:end]]  # Gluon has no public way to give a parameter memory that it shares
        start = end
    return joined
