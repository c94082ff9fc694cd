"""MXNet blocks to and from NumPy arrays under canonical names: the names and layouts of all backends on disk.

The canonical names are the names of PyTorch's modules. The blocks here have the same attributes:

    MXNet                    canonical
    BatchNorm gamma, beta    weight, bias
    BatchNorm running_var    unchanged: unbiased, because `running_statistics.py` keeps it so
    everything else          unchanged; convolutions (out, in / groups, height, width), linear layers (out, in)
"""

from collections.abc import Iterator, Mapping

import numpy as np
from mxnet import gluon, nd
from mxnet.gluon import nn
from mxnet.ndarray import NDArray

from common.weights.checkpoint import check_arrays
from common.weights.initialisation import Kind, ParameterSpec
from mxnet_impl.backbones._layers import BatchNorm1D, PReLU, SyncBatchNorm

BATCH_NORM: dict[str, tuple[str, Kind]] = {
    "gamma": ("weight", "bn_weight"),
    "beta": ("bias", "bn_bias"),
    "running_mean": ("running_mean", "bn_mean"),
    "running_var": ("running_var", "bn_var"),
}
KINDS: dict[type[gluon.Block], dict[str, tuple[str, Kind]]] = {
    nn.Conv2D: {"weight": ("weight", "conv")},
    nn.Dense: {"weight": ("weight", "linear"), "bias": ("bias", "bias")},
    nn.BatchNorm: BATCH_NORM,
    BatchNorm1D: BATCH_NORM,
    SyncBatchNorm: BATCH_NORM,
    PReLU: {"weight": ("weight", "prelu")},
}
HEAD: dict[str, tuple[str, Kind]] = {  # of all other blocks
    "class_weight": ("class_weight", "class_weight"),
    "bias": ("bias", "bias"),
}


def named_parameters(module: gluon.Block) -> dict[str, gluon.Parameter]:
    """Parameters and running statistics by canonical name."""
    return {name: parameter for name, _, parameter in _walk(module)}


def named_tensors(module: gluon.Block) -> dict[str, NDArray]:
    """Values of parameters and running statistics by canonical name, which share the memory of `module`."""
    return {name: parameter.data() for name, parameter in named_parameters(module).items()}


def parameter_specs(module: gluon.Block) -> dict[str, ParameterSpec]:
    """Kind and shape of each parameter and running statistic of a backbone or head, for `draw_parameters`.

    Raises:
        ValueError: a parameter is not listed in `KINDS`.
    """
    return {name: ParameterSpec(kind, tuple(parameter.shape)) for name, kind, parameter in _walk(module)}


def to_canonical(module: gluon.Block) -> dict[str, np.ndarray]:
    """Copies of all parameters and running statistics: float32 or float64 as they are, C-contiguous.

    Raises:
        ValueError: an array is of another dtype.
    """
    return to_arrays(named_tensors(module))


def from_canonical(module: gluon.Block, arrays: Mapping[str, np.ndarray]) -> None:
    """Load a result of `to_canonical`: exactly the names, shapes and dtypes of `module`, all values finite.

    Raises:
        ValueError: something does not fit; names the first few problems. Nothing was loaded.
    """
    from_arrays(named_tensors(module), arrays)


def to_arrays(tensors: Mapping[str, NDArray]) -> dict[str, np.ndarray]:
    """Copies of named arrays (parameters, momentum buffers): same dtype, C-contiguous, nothing shared.

    Raises:
        ValueError: an array is neither float32 nor float64.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in (np.float32, np.float64):
            raise ValueError(f"{name}: expected float32 or float64, got {np.dtype(tensor.dtype)}")
    return {name: tensor.asnumpy() for name, tensor in tensors.items()}


def from_arrays(tensors: Mapping[str, NDArray], arrays: Mapping[str, np.ndarray]) -> None:
    """Check all arrays, then copy them into the MXNet arrays of the same names.

    Raises:
        ValueError: a name is missing or unexpected, a shape or dtype differs, a value is NaN or infinite, or a running
            variance is negative; names the first few problems. Nothing was copied.
    """
    check_arrays({name: (str(np.dtype(tensor.dtype)), tensor.shape) for name, tensor in tensors.items()}, arrays)
    for name, tensor in tensors.items():
        # not from NumPy at once: MXNet refuses that for an array that oneDNN has in a layout of its own
        tensor[:] = nd.array(arrays[name], tensor.context, tensor.dtype)


def _walk(module: gluon.Block, prefix: str = "") -> Iterator[tuple[str, Kind, gluon.Parameter]]:
    """Canonical name, kind and parameter, in the order of the attributes."""
    kinds = KINDS.get(type(module), HEAD)
    for native, parameter in module._reg_params.items():
        if native not in kinds:
            raise ValueError(
                f"{prefix}{native}: expected a parameter listed in KINDS, got {type(module).__name__}.{native}"
            )
        canonical, kind = kinds[native]
        yield prefix + canonical, kind, parameter
    for name, child in module._children.items():
        yield from _walk(child, f"{prefix}{name}.")
