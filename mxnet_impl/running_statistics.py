"""Running means and variances for MXNet's BatchNorm, as PyTorch computes them.

Both frameworks normalise by the biased variance of the batch. PyTorch moves the running variance towards the unbiased
one, n / (n - 1) times the biased one for n values a channel. MXNet moves it towards the biased one, and rounds the
factor 0.9 to float32, also in a float64 network. A checkpoint must mean the same to every backend. So MXNet gets
momentum 0: its backward pass then stores the statistics of the batch alone, and they are averaged here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from mxnet import gluon, nd
from mxnet.gluon import nn
from mxnet.ndarray import NDArray

KEPT = 0.9  # share of a running statistic that stays in each step


class RunningStatistics:
    """The running statistics of a network. It changes the BatchNorm layers: train inside `follow` from then on.

    The means and variances of all layers become parts of two arrays, so no step has to join them.

    Args:
        network: initialised, not hybridised yet.
        images: (N, 3, S, S) of the size that the network takes, with any values.
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
        # In inference the engine reorders the weights of convolutions, and a copy of a weight does not wait for that.
        # Without the wait here, a weight was wrong in four of five hundred networks.
        network(images).wait_to_read()
        for handle in handles:
            handle.detach()
        self._means = _joined([layer.running_mean for layer in self._layers])
        self._variances = _joined([layer.running_var for layer in self._layers])

    @contextmanager
    def follow(self, batch_size: int) -> Iterator[None]:
        """Enclose one forward and backward pass of `batch_size` images, and update the running statistics after it.

        Raises:
            ValueError: a channel has a single value, whose variance is 0.
        """
        if batch_size * min(self._cells) < 2:
            raise ValueError(f"expected more than 1 value per channel when training, got a batch of {batch_size}")
        means, variances = self._means.copy(), self._variances.copy()
        yield
        self._means[:] = KEPT * means + (1 - KEPT) * self._means
        self._variances[:] = KEPT * variances + (1 - KEPT) * self._factor(batch_size) * self._variances

    def _factor(self, batch_size: int) -> NDArray:
        """Compute n / (n - 1) for every channel."""
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
    """Join parameters to one array, of which each parameter is a part from then on."""
    joined = nd.concat(*[parameter.data() for parameter in parameters], dim=0)
    start = 0
    for parameter in parameters:
        end = start + parameter.shape[0]
        parameter._data = [joined[start:end]]  # Gluon has no public way to share memory
        start = end
    return joined
