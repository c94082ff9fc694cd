"""SGD by the rule v = m v + (g + wd w), w = w - lr v of all backends, and which parameters have weight decay.

This is the rule of `torch.optim.SGD`. Its fused form passes over memory once, not four times. The learning rate is not
part of the momentum buffer. In MXNet's own SGD it is, so the two differ from the first drop of the rate on.
"""

from inspect import unwrap

import torch
from torch import Tensor, nn

NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


class _SGD(torch.optim.SGD):
    """PyTorch's, without the decorators that load its compiler to keep out of it: more than a second of each start."""

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))


def create_optimizer(modules: list[nn.Module], *, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD over all trainable parameters. BatchNorm parameters and biases have no weight decay."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for root in modules:
        for module in root.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    is_free = isinstance(module, NORMALISATIONS) or name == "bias"
                    (undecayed if is_free else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = _SGD(groups, lr=0.0, momentum=momentum, fused=True)  # the loop sets the rate of each step
    for parameter in decayed + undecayed:
        momentum_buffer(optimizer, parameter)  # otherwise it stays uninitialised if the first float16 step is skipped
    return optimizer


def set_learning_rate(optimizer: torch.optim.SGD, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def momentum_buffer(optimizer: torch.optim.SGD, parameter: nn.Parameter) -> Tensor:
    """The buffer v of a parameter, to read or to write; zeros before the first step."""
    state = optimizer.state[parameter]
    if state.get("momentum_buffer") is None:
        state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return state["momentum_buffer"]
