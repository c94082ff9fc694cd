"""Jittor modules to and from NumPy arrays under canonical names: the names and layouts of all backends on disk.

The canonical names are the names of PyTorch's modules, which the modules here have too:

    Jittor                   canonical
    ...running_var           unchanged: unbiased, because `backbones._layers.BatchNorm` stores it so
    everything else          unchanged; convolutions (out, in / groups, height, width), linear layers (out, in)
"""

from collections.abc import Mapping

import jittor as jt
import numpy as np
from jittor import Var, nn

from common.weights.checkpoint import check_arrays
from common.weights.initialisation import Kind, ParameterSpec
from jittor_impl.backbones._layers import BatchNorm, PReLU

BATCH_NORM: dict[str, Kind] = {
    "weight": "bn_weight",
    "bias": "bn_bias",
    "running_mean": "bn_mean",
    "running_var": "bn_var",
}
KINDS: dict[type[nn.Module], dict[str, Kind]] = {
    nn.Conv2d: {"weight": "conv"},
    nn.Linear: {"weight": "linear", "bias": "bias"},
    BatchNorm: BATCH_NORM,
    PReLU: {"weight": "prelu"},
}
HEAD: dict[str, Kind] = {"class_weight": "class_weight", "bias": "bias"}  # of all other modules


def named_tensors(module: nn.Module) -> dict[str, Var]:
    """Parameters and running statistics of `module` by canonical name; no copies."""
    return module.state_dict()


def parameter_specs(module: nn.Module) -> dict[str, ParameterSpec]:
    """Kind and shape of each parameter and running statistic of a backbone or head, for `draw_parameters`.

    Raises:
        ValueError: a parameter is not listed in `KINDS`.
    """
    layers = dict(module.named_modules())
    specs = {}
    for name, tensor in named_tensors(module).items():
        owner, _, attribute = name.rpartition(".")
        layer = type(layers[owner])
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


def to_arrays(tensors: Mapping[str, Var]) -> dict[str, np.ndarray]:
    """Copies of named tensors (parameters, momentum buffers): same dtype, C-contiguous, nothing shared.

    Raises:
        ValueError: a tensor is neither float32 nor float64.
    """
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in ("float32", "float64"):
            raise ValueError(f"{name}: expected float32 or float64, got {tensor.dtype}")
    return {name: np.array(tensor.numpy(), order="C") for name, tensor in tensors.items()}


def from_arrays(tensors: Mapping[str, Var], arrays: Mapping[str, np.ndarray]) -> None:
    """Check all arrays, then copy them into the tensors of the same names.

    Raises:
        ValueError: a name is missing or unexpected, a shape or dtype differs, a value is NaN or infinite, or a running
            variance is negative; names the first few problems. Nothing was copied.
    """
    check_arrays({name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()}, arrays)
    for name, tensor in tensors.items():
        value = jt.array(arrays[name], tensor.dtype)
        tensor.update(value.stop_grad() if tensor.is_stop_grad() else value)
    jt.sync(list(tensors.values()))
