"""What `python -m parity_tests` asks of a backend, NumPy in and NumPy out; the contract is in docs/parity.md."""

from collections.abc import Mapping, Sequence
from typing import Any

import jittor as jt
import numpy as np
from jittor import Var

from common.config import HeadConfig
from jittor_impl import checkpoint, runtime
from jittor_impl.backbones import create_backbone
from jittor_impl.losses import SphereFaceHead, sface_loss
from jittor_impl.losses.sface import Rescaling
from jittor_impl.trainer import Trainer, create_head
from parity_tests.backends import refusal

_device = runtime.resolve_device("cpu")
_NO_PRODUCTS = "Jittor asks cuBLAS to add float64 products in float32, which cuBLAS refuses"
_LACKS_ON_CUDA = {("fp64", kind): _NO_PRODUCTS for kind in ("sface", "margin", "backbone", "train")}


def use(device: str, precision: str, kind: str) -> str | None:
    """From now on compute there; gives why not, for this kind of case, or None. The precision is that of the backbone.

    Args:
        device: cpu, cuda or cuda:N.
        precision: fp32, fp64, bf16, fp16 or tf32.
        kind: of the case, as `parity_tests.worker.KINDS`.
    """
    global _device
    reason = refusal("jittor", device, precision)
    if reason is None:
        _device = runtime.resolve_device(device)  # new arrays lie there
        reason = _LACKS_ON_CUDA.get((precision, kind)) if _device != "cpu" else None
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
    variables = {name: _variable(value) for name, value in options.items() if isinstance(value, np.ndarray)}
    result = sface_loss(x, w, jt.array(labels, "int64"), **{**options, **variables})
    shape = (-1,) if options.get("reduction") == "none" else ()
    names = ("loss", "intra_loss", "inter_loss")
    return {name: _array(getattr(result, name)).reshape(shape) for name in names} | _gradients(result.loss.sum(), x, w)


def sface_weights(theta: np.ndarray, **parameters: float) -> dict[str, np.ndarray]:
    """r_intra and r_inter of angles of any shape, radians."""
    angles, rescaling = _variable(theta), Rescaling(**parameters)
    return {"intra_weight": _array(rescaling.pull(angles)), "inter_weight": _array(rescaling.push(angles))}


def margin_head(
    config: HeadConfig, embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, *, step: int
) -> dict[str, np.ndarray]:
    """Loss and gradients of a baseline head at an optimiser step, in the dtype of `embeddings`."""
    head = create_head(config, embeddings.shape[1], len(class_weight))
    head.class_weight = _variable(class_weight)
    if config.name == "softmax":
        head.bias = jt.zeros((len(class_weight),), head.class_weight.dtype)
    if isinstance(head, SphereFaceHead):
        head.step = step
    x = _variable(embeddings)
    result = head(x, jt.array(labels, "int64"))
    return {"loss": _array(result.loss).reshape(())} | _gradients(result.loss, x, head.class_weight)


def backbone(
    name: str, state: Mapping[str, np.ndarray], images: np.ndarray, grad_output: np.ndarray, *, taps: Sequence[str]
) -> dict[str, np.ndarray]:
    """As `parity_tests.backends.pytorch.backbone`."""
    network = create_backbone(name, grad_output.shape[1], images.shape[2], dropout=0.0)
    if images.dtype == np.float64:
        network.float64()
    checkpoint.from_canonical(network, state)
    layers = dict(network.named_modules())
    tapped: dict[str, Var] = {}
    for tap in taps:
        layers[tap].register_forward_hook(
            lambda _module, _inputs, output, tap=tap: tapped.update({tap: output.detach()})
        )
    network.eval()
    with jt.no_grad():
        seen = {"eval.output": _array(network(_variable(images)))}
    seen |= {f"eval.{tap}": _array(output) for tap, output in tapped.items()}
    network.train()
    x = _variable(images)
    output = network(x)
    seen |= {f"train.{tap}": _array(value) for tap, value in tapped.items()}
    trained = {n: p for n, p in checkpoint.named_tensors(network).items() if not p.is_stop_grad()}
    gradients = jt.grad((output * jt.array(grad_output, output.dtype)).sum(), [x, *trained.values()])
    seen |= {"train.output": _array(output), "grad.input": _array(gradients[0])}
    seen |= {f"grad.{name}": _array(gradient) for name, gradient in zip(trained, gradients[1:], strict=True)}
    return seen | {f"after.{n}": array for n, array in checkpoint.to_canonical(network).items() if ".running_" in n}


def _variable(array: np.ndarray) -> Var:
    return jt.array(array, str(array.dtype))


def _array(var: Var) -> np.ndarray:
    return var.numpy().copy()


def _gradients(loss: Var, embeddings: Var, class_weight: Var) -> dict[str, np.ndarray]:
    grad_embeddings, grad_class_weight = jt.grad(loss, [embeddings, class_weight])
    return {"grad_embeddings": _array(grad_embeddings), "grad_class_weight": _array(grad_class_weight)}
