"""SGD by the rule v = m v + (g + wd w), w = w - lr v of all backends, and which parameters have weight decay.

`mxnet.optimizer.SGD` has the learning rate inside the momentum buffer, so it differs once the rate drops.
"""

import itertools
from collections.abc import Iterable

import numpy as np
from mxnet import gluon, nd
from mxnet.gluon import nn
from mxnet.ndarray import NDArray

NORMALISATIONS = (nn.BatchNorm,)
_MOST_TOGETHER = 60  # parameters that one call of MXNet's operators takes


class SGD:
    """Updates parameters in place and overwrites their gradients; `learning_rate` is the rate of the next step.

    Args:
        weight_decay: wd of each parameter.
        momentum: m.
    """

    def __init__(self, weight_decay: dict[gluon.Parameter, float], *, momentum: float) -> None:
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.learning_rate = 0.0  # the loop sets the rate of each step
        self.buffers = {parameter: nd.zeros_like(parameter.data()) for parameter in weight_decay}
        self._groups = _groups(weight_decay)

    def step(self) -> None:
        for parameters in self._groups:
            weights = [parameter.data() for parameter in parameters]
            gradients = [parameter.grad() for parameter in parameters]
            buffers = [self.buffers[parameter] for parameter in parameters]
            decay = [self.weight_decay[parameter] for parameter in parameters]
            if weights[0].dtype == np.float32:
                self._update_together(weights, gradients, buffers, decay)
            else:
                for tensors in zip(weights, gradients, buffers, decay, strict=True):
                    self._update(*tensors)

    def _update_together(
        self, weights: list[NDArray], gradients: list[NDArray], buffers: list[NDArray], decay: list[float]
    ) -> None:
        """Update several float32 parameters by MXNet's operators, which start their threads once for all of them."""
        # with rate -1 the buffer becomes v; the weights of that rate are written over the gradients and not used
        nd.multi_sgd_mom_update(
            *itertools.chain(*zip(weights, gradients, buffers, strict=True)),
            out=gradients, lrs=[-1.0] * len(weights), wds=decay, momentum=self.momentum, num_weights=len(weights),
        )  # fmt: skip
        nd.multi_sgd_update(
            *itertools.chain(*zip(weights, buffers, strict=True)),
            out=weights, lrs=[self.learning_rate] * len(weights), wds=[0.0] * len(weights), num_weights=len(weights),
        )  # fmt: skip

    def _update(self, weight: NDArray, gradient: NDArray, buffer: NDArray, weight_decay: float) -> None:
        buffer *= self.momentum
        buffer += gradient
        if weight_decay:
            buffer += weight_decay * weight
        weight -= self.learning_rate * buffer


def _groups(parameters: Iterable[gluon.Parameter]) -> list[list[gluon.Parameter]]:
    """Parameters of similar size: MXNet's operators loop over the size of the largest for each of them."""
    found = []
    by_size = sorted(parameters, key=lambda parameter: parameter.data().size)
    for _, alike in itertools.groupby(by_size, key=lambda parameter: parameter.data().size.bit_length()):
        group = list(alike)
        found += [group[first : first + _MOST_TOGETHER] for first in range(0, len(group), _MOST_TOGETHER)]
    return found


def create_optimizer(modules: list[gluon.Block], *, momentum: float, weight_decay: float) -> SGD:
    """SGD over all trainable parameters, initialised ones. BatchNorm parameters and biases have no weight decay."""
    decay: dict[gluon.Parameter, float] = {}

    def add(module: gluon.Block) -> None:
        for name, parameter in module._reg_params.items():
            if parameter.grad_req != "null":
                is_free = isinstance(module, NORMALISATIONS) or name == "bias"
                decay[parameter] = 0.0 if is_free else weight_decay

    for root in modules:
        root.apply(add)
    return SGD(decay, momentum=momentum)


def set_learning_rate(optimizer: SGD, learning_rate: float) -> None:
    optimizer.learning_rate = learning_rate


def momentum_buffer(optimizer: SGD, parameter: gluon.Parameter) -> NDArray:
    """The buffer v of a parameter, to read or to write; zeros before the first step."""
    return optimizer.buffers[parameter]
