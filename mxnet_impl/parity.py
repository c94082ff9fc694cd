"""What `python -m parity_tests` asks of a backend, NumPy in and NumPy out; the contract is in docs/parity.md."""

from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.ndarray import NDArray

from common.config import HeadConfig
from mxnet_impl import runtime
from mxnet_impl.margin_losses import ArcFaceHead, CosFaceHead, NormalisedSoftmaxHead, SoftmaxHead, SphereFaceHead
from mxnet_impl.sface_loss import Form, inter_weight, intra_weight, sface_loss


def describe() -> dict[str, Any]:
    """Version, device, threads: JSON values."""
    return runtime.describe(runtime.resolve_device("auto"))


def sface(
    embeddings: np.ndarray,
    class_weight: np.ndarray,
    labels: np.ndarray,
    *,
    form: Form,
    block_size: int,
    **parameters: float,
) -> dict[str, np.ndarray]:
    """Loss, its two parts and both gradients of `sface_loss`, in the dtype of `embeddings`."""
    x, w = _variable(embeddings), _variable(class_weight)
    with autograd.record():
        result = sface_loss(x, w, _labels(labels), form=form, block_size=block_size, **parameters)
    result.loss.backward()
    names = ("loss", "intra_loss", "inter_loss")
    return {name: _scalar(getattr(result, name)) for name in names} | _gradients(x.grad, w.grad)


def sface_weights(
    theta: np.ndarray, *, scale: float, intra_slope: float, inter_slope: float, intra_center: float, inter_center: float
) -> dict[str, np.ndarray]:
    """r_intra and r_inter of angles of any shape, radians."""
    angles = nd.array(theta, dtype=theta.dtype)
    return {
        "intra_weight": intra_weight(angles, scale, intra_slope, intra_center).asnumpy(),
        "inter_weight": inter_weight(angles, scale, inter_slope, inter_center).asnumpy(),
    }


def margin_head(
    config: HeadConfig, embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, *, step: int
) -> dict[str, np.ndarray]:
    """Loss and gradients of a baseline head at an optimiser step, in the dtype of `embeddings`."""
    head = _create_head(config, embeddings.shape[1], len(class_weight))
    head.initialize()
    head.cast(class_weight.dtype)
    head.class_weight.set_data(nd.array(class_weight, dtype=class_weight.dtype))
    if isinstance(head, SphereFaceHead):
        head.step = step
    x = _variable(embeddings)
    with autograd.record():
        result = head(x, _labels(labels))
    result.loss.backward()
    return {"loss": _scalar(result.loss)} | _gradients(x.grad, head.class_weight.grad())


def _create_head(config: HeadConfig, embedding_size: int, num_classes: int) -> gluon.Block:
    margin = {} if config.margin is None else {"margin": config.margin}
    if config.name == "softmax":
        return SoftmaxHead(embedding_size, num_classes)
    if config.name == "normalised-softmax":
        return NormalisedSoftmaxHead(embedding_size, num_classes, scale=config.scale)
    if config.name == "cosface":
        return CosFaceHead(embedding_size, num_classes, scale=config.scale, **margin)
    if config.name == "arcface":
        return ArcFaceHead(embedding_size, num_classes, scale=config.scale, **margin)
    return SphereFaceHead(embedding_size, num_classes)


def _variable(array: np.ndarray) -> NDArray:
    variable = nd.array(array, dtype=array.dtype)
    variable.attach_grad()
    return variable


def _labels(labels: np.ndarray) -> NDArray:
    return mx.nd.array(labels, dtype=np.int64)


def _scalar(array: NDArray) -> np.ndarray:
    return array.asnumpy().reshape(())


def _gradients(embeddings: NDArray, class_weight: NDArray) -> dict[str, np.ndarray]:
    return {"grad_embeddings": embeddings.asnumpy(), "grad_class_weight": class_weight.asnumpy()}
