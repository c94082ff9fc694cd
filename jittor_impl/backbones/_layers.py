"""Layers whose Jittor originals compute something else, or slowly. This file needs Jittor only."""

import jittor as jt
from jittor import Var, nn


class BatchNorm(nn.Module):
    """Batch normalisation of (N, C) or (N, C, H, W), over all axes but C.

    Training normalises with the mean and the biased variance of the batch and moves the running statistics by
    `momentum`; the stored variance is the unbiased one, n / (n - 1) times the biased, as in PyTorch: then a checkpoint
    means the same to every backend. (jittor.nn.BatchNorm stores the biased one, and computes it as E[x^2] - E[x]^2,
    which loses digits where the mean is large.)

    Raises:
        ValueError: in `execute`: training on a single value a channel, whose variance says nothing.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = jt.ones(num_features)
        self.bias = jt.zeros(num_features)
        self.running_mean = jt.zeros(num_features).stop_grad()
        self.running_var = jt.ones(num_features).stop_grad()

    def execute(self, x: Var) -> Var:
        axes = [0, *range(2, x.ndim)]
        if not self.is_training():
            scale = self.weight / jt.sqrt(self.running_var + _number(self.eps, x))
            return x * scale.broadcast(x, axes) + (self.bias - self.running_mean * scale).broadcast(x, axes)

        count = x.numel() // self.num_features
        if count < 2:
            raise ValueError(f"expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        # sums instead of Var.mean, whose gradient has 1 / n rounded to float32
        mean = x.sum(axes) / _number(count, x)
        centred = x - mean.broadcast(x, axes)
        var = (centred * centred).sum(axes) / _number(count, x)
        scale = self.weight / jt.sqrt(var + _number(self.eps, x))
        self._follow(mean, var * _number(count / (count - 1), x))
        return centred * scale.broadcast(x, axes) + self.bias.broadcast(x, axes)

    def _follow(self, mean: Var, var: Var) -> None:
        momentum = _number(self.momentum, mean)
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            running.update((running + momentum * (new.detach() - running)).stop_grad())


def _number(value: float, like: Var) -> Var:
    """A number in the dtype of `like`: as a Python number it would be rounded to float32, also beside float64."""
    return jt.array(value, like.dtype)
