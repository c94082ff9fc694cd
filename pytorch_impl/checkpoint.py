"""PyTorch modules to and from NumPy arrays under canonical names: the names and layouts of all backends on disk.

The canonical names are the names of PyTorch's modules:

    PyTorch                  canonical
    ...num_batches_tracked   left out: with a fixed momentum, BatchNorm does not need it
    ...running_var           unchanged: unbiased; MXNet and Jittor, whose own are biased, keep unbiased ones here
    everything else          unchanged; convolutions (out, in / groups, height, width), linear layers (out, in)
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from common.weights.checkpoint import check_arrays
from common.weights.initialisation import Kind, ParameterSpec
from pytorch_impl.backbones._prelu import PReLU

BATCH_NORM: dict[str, Kind] = {
    "weight": "bn_weight",
    "bias": "bn_bias",
    "running_mean": "bn_mean",
    "running_var": "bn_var",
}
KINDS: dict[type[nn.Module], dict[str, Kind]] = {
    nn.Conv2d: {"weight": "conv"},
    nn.Linear: {"weight": "linear", "bias": "bias"},
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.SyncBatchNorm: BATCH_NORM,
    nn.PReLU: {"weight": "prelu"},
    PReLU: {"weight": "prelu"},
}
HEAD: dict[str, Kind] = {"class_weight": "class_weight", "bias": "bias"}  # of all other modules


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics by canonical name; detached, they share the memory of `module`."""
    return {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("num_batches_tracked")}


def parameter_specs(module: nn.Module) -> dict[str, ParameterSpec]:
    """Kind and shape of each parameter and running statistic of a backbone or head, for `draw_parameters`.

    Raises:
        ValueError: a parameter is not listed in `KINDS`.
    """
    specs = {}
    for name, tensor in named_tensors(module).items():
        owner, _, attribute = name.rpartition(".")
        layer = type(module.get_submodule(owner))
        kinds = KINDS.get(layer, HEAD)
        if attribute not in kinds:
            raise ValueError(f"{name}: expected a parameter listed in KINDS, got {layer.__name__}.{attribute}")
        specs[name] = ParameterSpec(kinds[attribute], tuple(tensor.shape))
    return specs


def to_canonical(module: nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters and running statistics: float32 or float64 as they are, C-contiguous.

    Raises:
        ValueError: a tensor is of another dtype.
    """
    return to_arrays(named_tensors(module))


def from_canonical(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Load a result of `to_canonical`: exactly the names, shapes and dtypes of `module`, all values finite.

    Raises:
        ValueError: something does not fit; names the first few problems. Nothing was loaded.
    """
    from_arrays(named_tensors(module), arrays)


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copies of named tensors (parameters, momentum buffers): same dtype, C-contiguous, nothing shared.

    Raises:
        ValueError: a tensor is neither float32 nor float64.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{name}: expected float32 or float64, got {tensor.dtype}")
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format).numpy()
        for name, tensor in tensors.items()
    }


def from_arrays(tensors: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray]) -> None:
    """Check all arrays, then copy them into the tensors of the same names.

    Raises:
        ValueError: a name is missing or unexpected, a shape or dtype differs, a value is NaN or infinite, or a running
            variance is negative; names the first few problems. Nothing was copied.
    """
    expected = {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}
    check_arrays(expected, arrays)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(np.require(arrays[name], requirements=["C", "W"])))
