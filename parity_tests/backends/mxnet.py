"""What `python -m parity_tests` asks of a backend, NumPy in and NumPy out; the contract is in docs/parity.md."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd, nd
from mxnet.ndarray import NDArray

from common.config import HeadConfig
from mxnet_impl import checkpoint, runtime
from mxnet_impl.backbones import create_backbone
from mxnet_impl.losses import SphereFaceHead, sface_loss
from mxnet_impl.losses.sface import Rescaling
from mxnet_impl.running_statistics import RunningStatistics
from mxnet_impl.trainer import Trainer, create_head
from parity_tests.backends import refusal


def use(device: str, precision: str, kind: str) -> str | None:
    """From now on compute there; gives why not, for this kind of case, or None. The precision is that of the backbone.

    Args:
        device: cpu, cuda or cuda:N.
        precision: fp32, fp64, bf16, fp16 or tf32.
        kind: of the case, as `parity_tests.worker.KINDS`.
    """
    reason = refusal("mxnet", device, precision)
    if reason is None:
        runtime.resolve_device(device).__enter__()  # new arrays lie there
    return reason


def describe() -> dict[str, Any]:
    """Version, device, threads: JSON values."""
    return runtime.describe(mx.current_context())


create_trainer = Trainer  # as `common.training.loop.fit` drives it


def sface(
    embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, **options: Any
) -> dict[str, np.ndarray]:
    """Loss, its two parts and both gradients of their sum, with the options of `sface_loss`; in `embeddings`' dtype."""
    x, w = _variable(embeddings), _variable(class_weight)
    arrays = {
        name: nd.array(value, dtype=value.dtype) for name, value in options.items() if isinstance(value, np.ndarray)
    }
    with autograd.record():
        result = sface_loss(x, w, _labels(labels), **{**options, **arrays})
    result.loss.backward()
    names = ("loss", "intra_loss", "inter_loss")
    return {name: _array(getattr(result, name)) for name in names} | _gradients(x.grad, w.grad)


def sface_weights(theta: np.ndarray, **parameters: float) -> dict[str, np.ndarray]:
    """r_intra and r_inter of angles of any shape, radians."""
    angles, rescaling = nd.array(theta, dtype=theta.dtype), Rescaling(**parameters)
    return {"intra_weight": rescaling.pull(angles).asnumpy(), "inter_weight": rescaling.push(angles).asnumpy()}


def margin_head(
    config: HeadConfig, embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, *, step: int
) -> dict[str, np.ndarray]:
    """Loss and gradients of a baseline head at an optimiser step, in the dtype of `embeddings`."""
    head = create_head(config, embeddings.shape[1], len(class_weight))
    head.initialize()
    head.cast(class_weight.dtype)
    head.class_weight.set_data(nd.array(class_weight, dtype=class_weight.dtype))
    if isinstance(head, SphereFaceHead):
        head.step = step
    x = _variable(embeddings)
    with autograd.record():
        result = head(x, _labels(labels))
    result.loss.backward()
    return {"loss": _array(result.loss)} | _gradients(x.grad, head.class_weight.grad())


def backbone(
    name: str, state: Mapping[str, np.ndarray], images: np.ndarray, grad_output: np.ndarray, *, taps: Sequence[str]
) -> dict[str, np.ndarray]:
    """As `parity_tests.backends.pytorch.backbone`."""
    network = create_backbone(name, grad_output.shape[1], images.shape[2], dropout=0.0)
    network.initialize()
    network.cast(images.dtype)
    checkpoint.from_canonical(network, state)
    x = _variable(images)
    running_statistics = RunningStatistics(network, x)
    seen: dict[str, np.ndarray] = {}
    mode = "eval"
    for tap in taps:
        functools.reduce(lambda block, child: block._children[child], tap.split("."), network).register_forward_hook(
            lambda _block, _inputs, output, tap=tap: seen.update({f"{mode}.{tap}": output.asnumpy()})
        )
    seen["eval.output"] = network(x).asnumpy()
    mode = "train"
    with running_statistics.follow(len(images)):
        with autograd.record():
            output = network(x)
        output.backward(nd.array(grad_output, dtype=grad_output.dtype))
    seen |= {"train.output": output.asnumpy(), "grad.input": x.grad.asnumpy()}
    parameters = checkpoint.named_parameters(network)
    seen |= {f"grad.{n}": p.grad().asnumpy() for n, p in parameters.items() if p.grad_req != "null"}
    return seen | {f"after.{n}": array for n, array in checkpoint.to_canonical(network).items() if ".running_" in n}


def _variable(array: np.ndarray) -> NDArray:
    variable = nd.array(array, dtype=array.dtype)
    variable.attach_grad()
    return variable


def _labels(labels: np.ndarray) -> NDArray:
    return nd.array(labels, dtype=np.int64)


def _array(array: NDArray) -> np.ndarray:
    """With shape () for a number, which MXNet 1.9.1 has no arrays of."""
    return array.asnumpy().reshape(() if array.shape == (1,) else array.shape)


def _gradients(embeddings: NDArray, class_weight: NDArray) -> dict[str, np.ndarray]:
    return {"grad_embeddings": embeddings.asnumpy(), "grad_class_weight": class_weight.asnumpy()}
