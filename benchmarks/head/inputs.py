"""Inputs of the benchmark of the head, and the share of entries that SFace weighs."""

import numpy as np

from common.config import HeadConfig

Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]  # embeddings (N, D), class_weight (C, D), labels (N,)

CLUSTER = 430  # classes in a cluster
OWN_NOISE, CLUSTER_SHARE = 0.6, 0.75


def random_inputs(classes: int, batch: int, dim: int) -> Inputs:
    """As at the first step: embeddings and prototypes are independent, and every angle is near 90 degrees."""
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((batch, dim), np.float32)
    return embeddings, _prototypes(random, classes, dim), random.integers(0, classes, batch)


def clustered_inputs(classes: int, batch: int, dim: int) -> Inputs:
    """As in a trained network: about 31 degrees to the own prototype, about 69 between classes of a cluster."""
    random = np.random.default_rng(0)
    centers = CLUSTER_SHARE * random.standard_normal((max(1, classes // CLUSTER), dim), np.float32)
    class_weight = _prototypes(random, classes, dim)
    class_weight += centers[random.integers(0, len(centers), classes)] * np.float32((2 / classes) ** 0.5)
    labels = random.integers(0, classes, batch)
    noise = random.standard_normal((batch, dim), np.float32)
    return _unit(class_weight[labels]) + OWN_NOISE * _unit(noise), class_weight, labels


INPUTS = {"random": random_inputs, "clustered": clustered_inputs}


SMALL = (  # batch N, classes C, dim D
    (32, 30, 128),
    (64, 336, 512),
    (256, 2000, 64),
    (4096, 100, 64),
    (1024, 1000, 32),
    (256, 10572, 128),
    (256, 10572, 512),
)
ACTIVE = (0.00005, 0.05, 0.5, 1.0)  # shares of the pushes


def center_for(inputs: Inputs, share: float, head: HeadConfig, epsilon: float) -> float:
    """The b with which about `share` of the entries of r_inter are at least scale * epsilon; radians."""
    embeddings, class_weight, _ = inputs
    cosines = (_unit(embeddings) @ _unit(class_weight).T).ravel()
    place = round((1 - share) * (len(cosines) - 1))
    least = np.partition(cosines, place)[place] if share < 1 else -1.0
    return float(np.clip(np.arccos(least) - np.log(1 / epsilon - 1) / head.inter_slope, 0, np.pi))


def active_share(inputs: Inputs, head: HeadConfig, epsilon: float, block: int = 4096) -> float:
    """Share of the entries of r_inter that are at least scale * epsilon."""
    embeddings, class_weight, labels = inputs
    unit = _unit(embeddings)
    angle = head.inter_center + np.log(1 / epsilon - 1) / head.inter_slope
    least = np.float32(np.cos(angle))
    count = sum(
        int(np.count_nonzero(unit @ _unit(class_weight[first : first + block]).T >= least))
        for first in range(0, len(class_weight), block)
    )
    own = (unit * _unit(class_weight[labels])).sum(1) >= least
    return (count - int(np.count_nonzero(own))) / (len(embeddings) * (len(class_weight) - 1))


def _prototypes(random: np.random.Generator, classes: int, dim: int) -> np.ndarray:
    prototypes = random.standard_normal((classes, dim), np.float32)
    prototypes *= np.float32((2 / classes) ** 0.5)
    return prototypes


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
