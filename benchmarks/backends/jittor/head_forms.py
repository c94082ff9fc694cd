"""The SFace head, and what its cost is held against in `python -m benchmarks head`."""

import functools
from collections.abc import Callable

import numpy as np
from jittor import Var, nn

from jittor_impl.losses.sface import SFaceHead, sface_loss
from jittor_impl.optimizer import create_optimizer, set_learning_rate
from jittor_impl.runtime import jt, resolve_device


def head_forms(
    embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, device: str, inter_center: float
) -> dict[str, Callable[[], tuple[Var, ...]]]:
    """As `benchmarks.backends.pytorch.head_forms.head_forms`, with those forms that every backend has."""
    resolve_device(device)
    x, w, y = (jt.array(array) for array in (embeddings, class_weight, labels))
    jt.sync([x, w, y])

    def done(*results: Var) -> tuple[Var, ...]:
        jt.sync(list(results), device_sync=True)
        return results

    def gradients(loss: Callable[[Var, Var], Var]) -> tuple[Var, ...]:
        variables = [jt.array(array).stop_grad().start_grad() for array in (x, w)]
        return done(*jt.grad(loss(*variables), variables))

    @functools.cache
    def trained() -> tuple[SFaceHead, jt.optim.SGD]:
        head = SFaceHead(w.shape[1], len(w))
        optimizer = create_optimizer([head], momentum=0.9, weight_decay=5e-4)
        set_learning_rate(optimizer, 1e-3)
        optimizer.backward((0 * head.class_weight).sum())
        return head, optimizer

    def update() -> tuple[Var, ...]:
        head, optimizer = trained()
        optimizer.step()
        done(head.class_weight)
        return ()

    sface = functools.partial(sface_loss, inter_center=inter_center)
    return {
        "product": lambda: done(nn.matmul_transpose(x, w)),
        "softmax": lambda: gradients(
            lambda x, w: nn.cross_entropy_loss(64 * nn.matmul_transpose(_unit(x), _unit(w)), y)
        ),
        "plain": lambda: gradients(lambda x, w: sface(x, w, y, form="plain").loss),
        "streamed": lambda: gradients(lambda x, w: sface(x, w, y).loss),
        "update": update,
    }


def to_numpy(array: Var) -> np.ndarray:
    """A result of a form, on the host."""
    return array.numpy()


def _unit(vectors: Var) -> Var:
    return vectors / vectors.sqr().sum(1, keepdims=True).sqrt()
