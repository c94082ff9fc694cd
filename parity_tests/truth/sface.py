"""The truth for SFace: its closed form in float64 NumPy, without regard to speed or memory."""

from typing import NamedTuple

import numpy as np

NORM_FLOOR = 1e-12


class SFaceTruth(NamedTuple):
    """Loss, weights, gradients and metrics; all float64."""

    loss: float  # (N,) with reduction "none", and so are its parts
    intra_loss: float
    inter_loss: float
    intra_weight: np.ndarray  # r_intra (N,)
    inter_weight: np.ndarray  # r_inter (N, C), 0 at the targets
    grad_embeddings: np.ndarray  # (N, D)
    grad_class_weight: np.ndarray  # (C, D)
    target_cosine: float
    other_cosine: float
    accuracy: float
    target_cosines: np.ndarray  # (N,)


def sface(
    embeddings: np.ndarray,
    class_weight: np.ndarray,
    labels: np.ndarray,
    *,
    scale: float = 64.0,
    intra_slope: float = 80.0,
    inter_slope: float = 80.0,
    intra_center: float | np.ndarray = 0.87,
    inter_center: float | np.ndarray = 1.2,
    reduction: str = "mean",
    sample_weight: np.ndarray | None = None,
) -> SFaceTruth:
    """Loss, weights, gradients and metrics.

    Args:
        embeddings: (N, D).
        class_weight: (C, D).
        labels: (N,), int.
        scale: s.
        intra_slope: k of r_intra.
        inter_slope: k of r_inter.
        intra_center: a, radians; one, or one a class, (C,).
        inter_center: b, radians; one, or one a class, (C,).
        reduction: "mean", "sum", or "none", with gradients of the sum.
        sample_weight: factors of the samples' losses, (N,); None: ones.
    """
    x, w = np.asarray(embeddings, np.float64), np.asarray(class_weight, np.float64)
    rows = np.arange(len(x))
    unit_x, unit_w = _unit(x), _unit(w)
    cosines = np.clip(unit_x @ unit_w.T, -1, 1)
    theta = np.arccos(cosines)

    r_intra = scale * _sigmoid(intra_slope * (theta - intra_center))[rows, labels]
    r_inter = scale * _sigmoid(-inter_slope * (theta - inter_center))
    r_inter[rows, labels] = 0
    factors = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if reduction == "mean":
        factors = factors / len(x)
    intra_loss = factors * -r_intra * cosines[rows, labels]
    inter_loss = factors * np.sum(r_inter * cosines, 1)
    if reduction != "none":
        intra_loss, inter_loss = intra_loss.sum(), inter_loss.sum()

    g = factors[:, None] * r_inter
    g[rows, labels] -= factors * r_intra
    others = cosines.copy()
    others[rows, labels] = -np.inf
    return SFaceTruth(
        loss=intra_loss + inter_loss,
        intra_loss=intra_loss,
        inter_loss=inter_loss,
        intra_weight=r_intra,
        inter_weight=r_inter,
        grad_embeddings=_through_normalisation(g @ unit_w, x),
        grad_class_weight=_through_normalisation(g.T @ unit_x, w),
        target_cosine=float(cosines[rows, labels].mean()),
        other_cosine=float(others[np.isfinite(others)].mean()),
        accuracy=float(np.mean(cosines[rows, labels] >= others.max(1))),
        target_cosines=cosines[rows, labels],
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), NORM_FLOOR)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1, small) / (1 + small)


def _through_normalisation(grad_unit: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = _unit(vectors)
    radial = np.sum(grad_unit * unit, 1, keepdims=True) * (norms > NORM_FLOOR)
    return (grad_unit - radial * unit) / np.maximum(norms, NORM_FLOOR)
