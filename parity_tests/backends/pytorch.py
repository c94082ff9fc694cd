"""What `python -m parity_tests` asks of a backend, NumPy in and NumPy out; the contract is in docs/parity.md."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.config import HeadConfig
from parity_tests.backends import refusal
from pytorch_impl import checkpoint, runtime
from pytorch_impl.backbones import create_backbone
from pytorch_impl.losses import SphereFaceHead, sface_loss
from pytorch_impl.losses.sface import Rescaling
from pytorch_impl.trainer import Trainer, create_head

_device = runtime.resolve_device("cpu")
_autocast: Callable[[], torch.autocast] = functools.partial(torch.autocast, "cpu", enabled=False)


def use(device: str, precision: str, kind: str) -> str | None:
    """From now on compute there; gives why not, for this kind of case, or None. The precision is that of the backbone.

    Args:
        device: cpu, cuda or cuda:N.
        precision: fp32, fp64, bf16, fp16 or tf32.
        kind: of the case, as `parity_tests.worker.KINDS`.
    """
    global _autocast, _device
    if precision == "tf32" and not device.startswith("cuda"):
        return "tf32 is of CUDA devices"
    if precision == "tf32" and kind == "train":
        return "the trainer turns TF32 off"
    reason = refusal("pytorch", device, "fp32" if precision == "tf32" else precision)
    if reason is None:
        _device = runtime.resolve_device(device)
        dtype = runtime.PRECISIONS.get(precision)
        enabled = dtype in (torch.bfloat16, torch.float16)
        _autocast = functools.partial(torch.autocast, _device.type, dtype=dtype if enabled else None, enabled=enabled)
        if precision == "tf32":
            torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
    return reason


def describe() -> dict[str, Any]:
    """Version, device, threads: JSON values."""
    return runtime.describe(_device)


create_trainer = Trainer  # as `common.training.loop.fit` drives it


def sface(
    embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, **options: Any
) -> dict[str, np.ndarray]:
    """Loss, its two parts and both gradients of their sum, with the options of `sface_loss`; in `embeddings`' dtype."""
    x, w = _variable(embeddings), _variable(class_weight)
    tensors = {name: _tensor(value) for name, value in options.items() if isinstance(value, np.ndarray)}
    with _autocast():
        result = sface_loss(x, w, _tensor(labels), **{**options, **tensors})
    result.loss.sum().backward()
    names = ("loss", "intra_loss", "inter_loss")
    return {name: _array(getattr(result, name)) for name in names} | _gradients(x, w)


def sface_weights(theta: np.ndarray, **parameters: float) -> dict[str, np.ndarray]:
    """r_intra and r_inter of angles of any shape, radians."""
    angles, rescaling = _tensor(theta), Rescaling(**parameters)
    with _autocast():
        return {"intra_weight": _array(rescaling.pull(angles)), "inter_weight": _array(rescaling.push(angles))}


def margin_head(
    config: HeadConfig, embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, *, step: int
) -> dict[str, np.ndarray]:
    """Loss and gradients of a baseline head at an optimiser step, in the dtype of `embeddings`."""
    head = create_head(config, embeddings.shape[1], len(class_weight))
    head.class_weight = torch.nn.Parameter(_tensor(class_weight))
    if config.name == "softmax":
        head.bias = torch.nn.Parameter(head.class_weight.new_zeros(len(class_weight)))
    if isinstance(head, SphereFaceHead):
        head.step = step
    x = _variable(embeddings)
    with _autocast():
        result = head(x, _tensor(labels))
    result.loss.backward()
    return {"loss": _array(result.loss)} | _gradients(x, head.class_weight)


def backbone(
    name: str, state: Mapping[str, np.ndarray], images: np.ndarray, grad_output: np.ndarray, *, taps: Sequence[str]
) -> dict[str, np.ndarray]:
    """Outputs of a backbone and of the modules `taps` in evaluation and in training, then gradients of
    sum(output * grad_output) in training, and what became of the running statistics.

    Args:
        name: of the backbone; without dropout.
        state: canonical names without "backbone.", in the dtype of `images`.
        images: normalised (N, 3, S, S).
        grad_output: (N, D).
        taps: paths of modules.
    """
    network = create_backbone(name, grad_output.shape[1], images.shape[2], dropout=0.0)
    network.to(_device, torch.from_numpy(images).dtype)
    checkpoint.from_canonical(network, state)
    seen: dict[str, np.ndarray] = {}
    mode = "eval"
    for tap in taps:
        network.get_submodule(tap).register_forward_hook(
            lambda _module, _inputs, output, tap=tap: seen.update({f"{mode}.{tap}": _array(output)})
        )
    with torch.no_grad(), _autocast():
        seen["eval.output"] = _array(network.eval()(_tensor(images)))
    mode = "train"
    x = _variable(images)
    with _autocast():
        output = network.train()(x)
    (output * _tensor(grad_output)).sum().backward()
    seen |= {"train.output": _array(output), "grad.input": _array(x.grad)}
    seen |= {f"grad.{n}": _array(p.grad) for n, p in network.named_parameters() if p.requires_grad}
    return seen | {f"after.{n}": array for n, array in checkpoint.to_canonical(network).items() if ".running_" in n}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array, device=_device)


def _variable(array: np.ndarray) -> Tensor:
    return _tensor(array).requires_grad_()


def _array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    array = tensor.detach().cpu().contiguous()
    return (array if array.dtype == torch.float64 else array.float()).numpy().copy()


def _gradients(embeddings: Tensor, class_weight: Tensor) -> dict[str, np.ndarray]:
    return {"grad_embeddings": _array(embeddings.grad), "grad_class_weight": _array(class_weight.grad)}
