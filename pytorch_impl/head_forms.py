"""The SFace head, and what its cost is held against in `python -m benchmarks head`."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pytorch_impl.runtime import resolve_device
from pytorch_impl.sface_loss import sface_loss


def head_forms(
    embeddings: np.ndarray, class_weight: np.ndarray, labels: np.ndarray, device: str
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Functions that compute one form each and return when it is done: the gradients for embeddings and class_weight.

    "product" is embeddings class_weight' alone, "softmax" the normalised softmax with cross-entropy and scale 64.

    Args:
        embeddings: float32 (N, D).
        class_weight: float32 (C, D).
        labels: int64 (N,).
        device: "cpu" or "cuda:N".
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

    return {
        "product": lambda: done(x @ w.T),
        "softmax": lambda: gradients(lambda x, w: F.cross_entropy(64 * F.normalize(x) @ F.normalize(w).T, y)),
        "plain": lambda: gradients(lambda x, w: sface_loss(x, w, y, form="plain").loss),
        "streamed": lambda: gradients(lambda x, w: sface_loss(x, w, y).loss),
    }


def to_numpy(array: Tensor) -> np.ndarray:
    """A result of a form, on the host."""
    return array.cpu().numpy()
