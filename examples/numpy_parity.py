"""SFace in plain NumPy, checked: python -m parity_tests --backends examples.numpy_parity --levels 1 2 3."""

import numpy as np


def describe():
    """What the table says of this backend."""
    return {"version": np.__version__, "device": "cpu"}


def sface(embeddings, class_weight, labels, *, scale, intra_slope, inter_slope, intra_center, inter_center):
    """Loss, its two parts, and both gradients with r held constant."""
    unit_x, norm_x = normalise(embeddings)
    unit_w, norm_w = normalise(class_weight)
    cosines = np.clip(unit_x @ unit_w.T, -1, 1)
    parameters = (scale, intra_slope, inter_slope, intra_center, inter_center)
    pull, push = rescaling(np.arccos(cosines), *parameters)
    own = np.arange(len(labels)), labels
    push[own] = 0
    intra_loss = np.mean(-pull[own] * cosines[own])
    inter_loss = np.mean(np.sum(push * cosines, axis=1))
    g = push
    g[own] -= pull[own]
    g /= len(labels)
    return {
        "loss": intra_loss + inter_loss,
        "intra_loss": intra_loss,
        "inter_loss": inter_loss,
        "grad_embeddings": through_norm(g @ unit_w, unit_x, norm_x),
        "grad_class_weight": through_norm(g.T @ unit_x, unit_w, norm_w),
    }


def sface_weights(theta, *, scale, intra_slope, inter_slope, intra_center, inter_center):
    """r_intra and r_inter of angles."""
    pull, push = rescaling(theta, scale, intra_slope, inter_slope, intra_center, inter_center)
    return {"intra_weight": pull, "inter_weight": push}


def rescaling(theta, scale, intra_slope, inter_slope, intra_center, inter_center):
    pull = scale * sigmoid(intra_slope * (theta - intra_center))
    push = scale * sigmoid(-inter_slope * (theta - inter_center))
    return pull, push


def sigmoid(x):
    return (1 + np.tanh(x / 2)) / 2


def normalise(vectors):
    """Unit vectors, and norms with a floor."""
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors / norms, norms


def through_norm(gradient, unit, norms):
    """The gradient for vectors from that for their unit vectors. At the floor it is a plain division."""
    radial = np.sum(gradient * unit, axis=1, keepdims=True) * (norms > 1e-12)
    return (gradient - radial * unit) / norms
