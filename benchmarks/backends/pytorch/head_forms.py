"""The SFace head, and what its cost is held against in `python -m benchmarks head`."""

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pytorch_impl.losses.margin_heads import sampled
from pytorch_impl.losses.sface import SFaceHead, sface_loss
from pytorch_impl.optimizer import create_optimizer, set_learning_rate
from pytorch_impl.runtime import resolve_device

PARTIAL_FC_RATE = 0.1  # that of the paper's tables (arXiv:2203.15565)


def head_forms(
    embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, device: str, inter_center: float
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Functions that compute one form each and return when it is done: the gradients for embeddings and class_weight.

    "product" is embeddings class_weight' alone, "softmax" the normalised softmax with cross-entropy and scale 64,
    "partial-fc" the same over a tenth of the classes, "dense" the streamed form without leaving out anything,
    "compiled" that with a compiled kernel, "screened" the streamed form whose entries are found among float16 products,
    "update" the optimiser's step of a class_weight.

    Args:
        embeddings: float32 (N, D).
        class_weight: float32 (C, D).
        labels: int64 (N,).
        device: "cpu" or "cuda:N".
        inter_center: b of SFace, which decides how many pushes count.
    """
    x, w, y = (torch.from_numpy(array).to(resolve_device(device)) for array in (embeddings, class_weight, labels))

    def done(*results: Tensor) -> tuple[Tensor, ...]:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return results

    def gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        variables = x.detach().requires_grad_(), w.detach().requires_grad_()
        loss(*variables).backward()
        return done(*(variable.grad for variable in variables))

    def softmax(x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(64 * F.normalize(x) @ F.normalize(w).T, y)

    @functools.cache
    def optimizer() -> torch.optim.SGD:
        head = SFaceHead(w.shape[1], len(w)).to(w.device)
        head.class_weight.grad = torch.zeros_like(head.class_weight)
        sgd = create_optimizer([head], momentum=0.9, weight_decay=5e-4)
        set_learning_rate(sgd, 1e-3)
        return sgd

    def update() -> tuple[Tensor, ...]:
        optimizer().step()
        return done()

    sface = functools.partial(sface_loss, inter_center=inter_center)
    return {
        "product": lambda: done(x @ w.T),
        "softmax": lambda: gradients(lambda x, w: softmax(x, w, y)),
        "partial-fc": lambda: gradients(lambda x, w: softmax(x, *sampled(w, y, PARTIAL_FC_RATE))),
        "plain": lambda: gradients(lambda x, w: sface(x, w, y, form="plain").loss),
        "streamed": lambda: gradients(lambda x, w: sface(x, w, y).loss),
        "dense": lambda: gradients(lambda x, w: sface(x, w, y, epsilon=0).loss),
        "compiled": lambda: gradients(lambda x, w: sface(x, w, y, epsilon=0, compiled=True).loss),
        "screened": lambda: gradients(lambda x, w: sface(x, w, y, screened=True).loss),
        "update": update,
    }


def to_numpy(array: Tensor) -> np.ndarray:
    """A result of a form, on the host."""
    return array.cpu().numpy()
