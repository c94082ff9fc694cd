"""The one SGD rule, v = m v + (g + wd w), w = w - lr v, and what weight decay applies to.

It is `jittor.optim.SGD` as it comes: the learning rate stands outside the momentum buffer. (MXNet's own SGD has it
inside, and the two part at the first drop of the rate.) Its numbers are handed over in the dtype of the parameters: a
Python number would be rounded to float32, also beside float64.
"""

import jittor as jt
from jittor import Var, nn

from jittor_impl.backbones._layers import BatchNorm

NORMALISATIONS = (BatchNorm,)


def create_optimizer(modules: list[nn.Module], *, momentum: float, weight_decay: float) -> jt.optim.SGD:
    """SGD over all trainable parameters; decay on everything but BatchNorm parameters and biases."""
    decayed: list[Var] = []
    undecayed: list[Var] = []
    for root in modules:
        for module in root.modules():
            for name, parameter in vars(module).items():
                # a fixed weight and the running statistics are no targets of gradients
                if isinstance(parameter, Var) and not parameter.is_stop_grad():
                    is_free = isinstance(module, NORMALISATIONS) or name == "bias"
                    (undecayed if is_free else decayed).append(parameter)
    dtype = (decayed + undecayed)[0].dtype
    groups = [
        {"params": parameters, "momentum": jt.array(momentum, dtype), "weight_decay": jt.array(decay, dtype)}
        for parameters, decay in ((decayed, weight_decay), (undecayed, 0.0))
    ]
    return jt.optim.SGD(groups, lr=0.0)  # the loop sets the rate of every step


def set_learning_rate(optimizer: jt.optim.SGD, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = jt.array(learning_rate, group["momentum"].dtype)


def momentum_buffer(optimizer: jt.optim.SGD, parameter: Var) -> Var:
    """The buffer v of a parameter, to read or to write; zeros before its first step, which is what the rule says."""
    for group in optimizer.param_groups:
        for candidate, buffer in zip(group["params"], group["values"], strict=True):
            if candidate is parameter:
                return buffer
    raise ValueError(f"{parameter.name()}: not a parameter of this optimizer")
