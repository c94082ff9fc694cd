"""The one SGD rule, v = m v + (g + wd w), w = w - lr v, and what weight decay applies to.

It is `torch.optim.SGD`, in its fused form: one pass over memory instead of four. The learning rate stands outside the
momentum buffer. (MXNet's own SGD has it inside, and the two part at the first drop of the rate.)
"""

import torch
from torch import Tensor, nn

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def create_optimizer(modules: list[nn.Module], *, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD over all trainable parameters; decay on everything but BatchNorm parameters and biases."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for root in modules:
        for module in root.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    is_free = isinstance(module, NORMALISATIONS) or name == "bias"
                    (undecayed if is_free else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)  # the loop sets the rate of every step
    for parameter in decayed + undecayed:
        momentum_buffer(optimizer, parameter)  # else it stays uninitialised where a first step in float16 is left out
    return optimizer


def set_learning_rate(optimizer: torch.optim.SGD, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def momentum_buffer(optimizer: torch.optim.SGD, parameter: nn.Parameter) -> Tensor:
    """The buffer v of a parameter, to read or to write; zeros before its first step, which is what the rule says."""
    state = optimizer.state[parameter]
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return state["momentum_buffer"]
