"""The truth for the baseline heads: loss and gradients in closed form, float64 NumPy."""

import math
from typing import NamedTuple

import numpy as np

from parity_tests.truth.sface import NORM_FLOOR, _through_normalisation

LEAST_SINE = 1e-6  # the root of 1e-12


class MarginTruth(NamedTuple):
    """Loss and its gradients; all float64."""

    loss: float
    grad_embeddings: np.ndarray  # (N, D)
    grad_class_weight: np.ndarray  # (C, D)
    grad_bias: np.ndarray | None = None  # (C,), softmax only


def margin_loss(
    head: str,
    embeddings: np.ndarray,
    class_weight: np.ndarray,
    labels: np.ndarray,
    *,
    scale: float = 64.0,
    margin: float = 0.5,
    step: int = 0,
    bias: np.ndarray | None = None,
) -> MarginTruth:
    """Mean cross-entropy of a head's logits for embeddings (N, D), class_weight (C, D) and labels (N,).

    `_target` has, for each head, the derivative of the target logit with respect to the target cosine.
    """
    x, w = np.asarray(embeddings, np.float64), np.asarray(class_weight, np.float64)
    rows = np.arange(len(x))
    if head == "softmax":
        logits = x @ w.T + (0 if bias is None else bias)
        loss, g = _cross_entropy(logits, labels)
        return MarginTruth(loss, g @ w, g.T @ x, g.sum(0))

    norms = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), NORM_FLOOR)
    prototype_norms = np.maximum(np.linalg.norm(w, axis=1, keepdims=True), NORM_FLOOR)
    unit_x, unit_w = x / norms, w / prototype_norms
    cosines = np.clip(unit_x @ unit_w.T, -1, 1)
    target, slope = _target(head, cosines[rows, labels], margin, step)
    with_margin = cosines.copy()
    with_margin[rows, labels] = target
    factor = norms if head == "sphereface" else scale
    loss, g = _cross_entropy(factor * with_margin, labels)

    grad_cosines = factor * g
    grad_cosines[rows, labels] *= slope
    grad_x = _through_normalisation(grad_cosines @ unit_w, x)
    if head == "sphereface":
        grad_x += np.sum(g * with_margin, 1, keepdims=True) * unit_x * (norms > NORM_FLOOR)
    return MarginTruth(loss, grad_x, _through_normalisation(grad_cosines.T @ unit_x, w))


def _target(head: str, cosine: np.ndarray, margin: float, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The target logit over its factor, and its derivative with respect to the cosine."""
    theta = np.arccos(cosine)
    if head == "normalised-softmax":
        return cosine, np.ones_like(cosine)
    if head == "cosface":
        return cosine - margin, np.ones_like(cosine)
    if head == "arcface":
        inside = theta + margin <= math.pi
        sine = np.maximum(np.sin(theta), LEAST_SINE)
        with_margin = cosine * math.cos(margin) - sine * math.sin(margin)
        value = np.where(inside, with_margin, cosine - margin * math.sin(margin))
        slope = np.where(sine > LEAST_SINE, np.sin(theta + margin) / sine, math.cos(margin))
        return value, np.where(inside, slope, 1.0)
    annealing = max(5.0, 1000 / (1 + 0.12 * step))
    k = np.minimum(np.floor(4 * theta / math.pi), 3)
    psi = (-1) ** k * np.cos(4 * theta) - 2 * k
    slope = (-1) ** k * (32 * cosine**3 - 16 * cosine)  # 4 sin(4 theta) / sin(theta), also at 0 and pi
    return (psi + annealing * cosine) / (1 + annealing), (slope + annealing) / (1 + annealing)


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean over the samples, and its gradient with respect to the logits."""
    rows = np.arange(len(logits))
    shifted = logits - logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(1, keepdims=True))
    probabilities = np.exp(shifted - log_sum)
    probabilities[rows, labels] -= 1
    return float(np.mean(log_sum[:, 0] - shifted[rows, labels])), probabilities / len(logits)
