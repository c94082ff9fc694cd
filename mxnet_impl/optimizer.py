"""The one SGD rule, v = m v + (g + wd w), w = w - lr v, and what weight decay applies to.

Not `mxnet.optimizer.SGD`, which has the learning rate inside the momentum buffer: the two part at the first drop of the
rate.
"""

import numpy as np
from mxnet import gluon, nd
from mxnet.gluon import nn
from mxnet.ndarray import NDArray

NORMALISATIONS = (nn.BatchNorm,)


class SGD:
    """Updates parameters in place from their gradients, which are lost; `learning_rate` is that of the next step.

    Args:
        weight_decay: wd of each parameter.
        momentum: m.
    """

    def __init__(self, weight_decay: dict[gluon.Parameter, float], *, momentum: float) -> None:
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.learning_rate = 0.0  # the loop sets the rate of every step
        self.buffers = {parameter: nd.zeros_like(parameter.data()) for parameter in weight_decay}

    def step(self) -> None:
        for parameter, weight_decay in self.weight_decay.items():
            self._update(parameter.data(), parameter.grad(), self.buffers[parameter], weight_decay)

    def _update(self, weight: NDArray, gradient: NDArray, buffer: NDArray, weight_decay: float) -> None:
        if weight.dtype == np.float32:  # MXNet's operators, which round numbers to float32, in two passes over memory
            # with -1 for the rate the buffer becomes v; the weights that belong to that rate go where nobody needs them
            rule = {"lr": -1.0, "momentum": self.momentum, "wd": weight_decay}
            nd.sgd_mom_update(weight, gradient, buffer, out=gradient, **rule)
            nd.sgd_update(weight, buffer, lr=self.learning_rate, wd=0.0, out=weight)
        else:
            buffer *= self.momentum
            buffer += gradient
            if weight_decay:
                buffer += weight_decay * weight
            weight -= self.learning_rate * buffer


def create_optimizer(modules: list[gluon.Block], *, momentum: float, weight_decay: float) -> SGD:
    """SGD over all trainable parameters, initialised; decay on everything but BatchNorm parameters and biases."""
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
    """The buffer v of a parameter, to read or to write; zeros before its first step, which is what the rule says."""
    if parameter not in optimizer.buffers:  # something else updates it
        optimizer.buffers[parameter] = nd.zeros_like(parameter.data())
    return optimizer.buffers[parameter]
