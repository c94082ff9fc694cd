"""Inputs of heads. With random embeddings both sigmoids are saturated (r_intra is s, r_inter is 0) and go untested."""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """Inputs of a head."""

    embeddings: np.ndarray  # (N, D) float64
    class_weight: np.ndarray  # (C, D) float64
    labels: np.ndarray  # (N,) int64


def planted(
    batch_size: int = 16,
    num_classes: int = 30,
    embedding_size: int = 24,
    *,
    intra_center: float = 0.87,
    inter_center: float = 1.2,
    spread: float = 0.03,
    seed: int = 0,
) -> Case:
    """Embeddings with angles on the knees of both sigmoids.

    Each embedding lies at an angle near `intra_center` (radians, normal with standard deviation `spread`) from its own
    prototype, and near `inter_center` from one other. Norms vary by a factor of 16.
    """
    random = np.random.default_rng(seed)
    class_weight = random.standard_normal((num_classes, embedding_size))
    labels = np.arange(batch_size) * 7 % num_classes
    others = (labels + 1 + np.arange(batch_size) % (num_classes - 1)) % num_classes

    def near(center: float) -> float:
        return center + spread * random.standard_normal()

    prototypes = zip(class_weight[labels], class_weight[others], strict=True)
    units = [_at_angles(*two, near(intra_center), near(inter_center), random) for two in prototypes]
    norms = 2.0 ** random.uniform(-2, 2, (batch_size, 1))
    return Case(np.stack(units) * norms, class_weight * 2.0 ** random.uniform(-2, 2, (num_classes, 1)), labels)


def on_both_knees(
    batch_size: int = 16,
    num_classes: int = 30,
    embedding_size: int = 64,
    *,
    intra_center: float = 0.87,
    inter_center: float = 1.2,
    seed: int = 0,
) -> Case:
    """Embeddings at the angle a (`intra_center`) from their own prototype, and b from nearly all others.

    The prototypes lie on a cone with opening c around an axis. Each embedding lies in the plane of the axis and its own
    prototype, tilted by c - a from the axis, so its angle to the own prototype is a. The cosine to another prototype
    is about cos(c - a) cos(c); c is chosen so that this is cos(b).
    """
    random = np.random.default_rng(seed)
    opening = (intra_center + np.arccos(2 * np.cos(inter_center) - np.cos(intra_center))) / 2
    axis = np.zeros(embedding_size)
    axis[0] = 1
    around = random.standard_normal((num_classes, embedding_size))
    around[:, 0] = 0
    around /= np.linalg.norm(around, axis=1, keepdims=True)
    class_weight = np.cos(opening) * axis + np.sin(opening) * around
    labels = np.arange(batch_size) * 7 % num_classes
    tilt = (opening - intra_center + 0.02 * random.standard_normal(batch_size))[:, None]
    embeddings = np.cos(tilt) * axis + np.sin(tilt) * around[labels]
    norms = [2.0 ** random.uniform(-2, 2, (count, 1)) for count in (batch_size, num_classes)]
    return Case(embeddings * norms[0], class_weight * norms[1], labels)


def _at_angles(
    own: np.ndarray, other: np.ndarray, own_angle: float, other_angle: float, random: np.random.Generator
) -> np.ndarray:
    """A unit vector at given angles from two vectors, random otherwise."""
    basis = np.linalg.qr(np.stack([own, other, random.standard_normal(len(own))], 1))[0]
    in_plane = np.stack([own / np.linalg.norm(own), other / np.linalg.norm(other)])
    part = basis[:, :2] @ np.linalg.solve(in_plane @ basis[:, :2], [np.cos(own_angle), np.cos(other_angle)])
    rest = 1 - part @ part
    if rest < 0:  # no vector has these angles from these two prototypes: keep the angle from the own one
        return _at_angles(own, random.standard_normal(len(own)), own_angle, np.pi / 2, random)
    return part + np.sqrt(rest) * basis[:, 2]
