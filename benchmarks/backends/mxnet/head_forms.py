"""The SFace head, and what its cost is held against in `python -m benchmarks head`."""

import functools
from collections.abc import Callable

import numpy as np
from mxnet import autograd, gluon, nd
from mxnet.ndarray import NDArray

from mxnet_impl.losses.sface import sface_loss
from mxnet_impl.optimizer import SGD, set_learning_rate
from mxnet_impl.runtime import resolve_device


def head_forms(
    embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, device: str, inter_center: float
) -> dict[str, Callable[[], tuple[NDArray, ...]]]:
    """As `benchmarks.backends.pytorch.head_forms.head_forms`, with those forms that every backend has."""
    context = resolve_device(device)
    x, w, y = (nd.array(array, context, array.dtype) for array in (embeddings, class_weight, labels))

    def done(*results: NDArray) -> tuple[NDArray, ...]:
        for result in results:
            result.wait_to_read()
        return results

    def gradients(loss: Callable[[NDArray, NDArray], NDArray]) -> tuple[NDArray, ...]:
        variables = x.detach(), w.detach()
        for variable in variables:
            variable.attach_grad()
        with autograd.record():
            value = loss(*variables)
        value.backward()
        return done(*(variable.grad for variable in variables))

    def softmax(x: NDArray, w: NDArray) -> NDArray:
        cosines = nd.dot(nd.L2Normalization(x), nd.L2Normalization(w), transpose_b=True)
        return -nd.mean(nd.pick(nd.log_softmax(64 * cosines), y))

    @functools.cache
    def trained() -> tuple[gluon.Parameter, SGD]:
        parameter = gluon.Parameter("class_weight", shape=w.shape)
        parameter.initialize(ctx=context)
        optimizer = SGD({parameter: 5e-4}, momentum=0.9)
        set_learning_rate(optimizer, 1e-3)
        return parameter, optimizer

    def update() -> tuple[NDArray, ...]:
        parameter, optimizer = trained()
        optimizer.step()
        parameter.data().wait_to_read()
        return ()

    sface = functools.partial(sface_loss, inter_center=inter_center)
    return {
        "product": lambda: done(nd.dot(x, w, transpose_b=True)),
        "softmax": lambda: gradients(softmax),
        "plain": lambda: gradients(lambda x, w: sface(x, w, y, form="plain").loss),
        "streamed": lambda: gradients(lambda x, w: sface(x, w, y).loss),
        "update": update,
    }


def to_numpy(array: NDArray) -> np.ndarray:
    """A result of a form, on the host."""
    return array.asnumpy()
