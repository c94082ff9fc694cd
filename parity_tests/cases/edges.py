"""Levels 1 and 3 at the edges: vectors that are zero, huge, tiny, opposite or NaN, and the smallest batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from parity_tests.cases.inputs import Case as Inputs
from parity_tests.cases.inputs import planted
from parity_tests.comparison import SFACE_PARAMETERS, Case, Check, as_arrays, held_by_float32
from parity_tests.setting import DTYPES
from parity_tests.truth.margin_heads import margin_loss
from parity_tests.truth.sface import NORM_FLOOR, sface

SFACE: dict[str, Any] = dict(zip(SFACE_PARAMETERS, (64.0, 80.0, 80.0, 0.87, 1.2), strict=True))
MARGINS = {"softmax": None, "normalised-softmax": None, "cosface": 0.35, "arcface": 0.5, "sphereface": None}
STEP = 700  # of sphereface
ODD = 1  # the sample that lies at the edge; the others show that it disturbs none of them


def edge_cases(quick: bool) -> Iterable[Case]:
    """Every head at every edge. A loss of a NaN embedding must not be finite: a diverged run must be noticed."""
    edges = {"zero-embedding": _with_embedding(lambda x, _: 0 * x)}
    if not quick:
        edges |= {
            "huge-embedding": _with_embedding(lambda x, _: 1e18 * x),  # float32 still holds its square
            "tiny-embedding": _with_embedding(lambda x, _: 1e-18 * x),
            "short-embedding": _with_embedding(lambda x, _: 0.5 * NORM_FLOOR * x / np.linalg.norm(x)),
            "short-prototype": _with_prototype(lambda w: 0.5 * NORM_FLOOR * w / np.linalg.norm(w)),
            "antiparallel": _with_embedding(lambda _, own: -own),
            "zero-prototype": _with_prototype(lambda w: 0 * w),
            "one-sample": _planted(1),
            "two-classes": _planted(num_classes=2),
            "one-class": _planted()._replace(labels=np.full(6, 3)),
            "nan-embedding": _with_embedding(lambda x, _: np.where(np.arange(len(x)) == 5, np.nan, x)),
        }
    for name, arrays in edges.items():
        rounded = Inputs(held_by_float32(arrays.embeddings), held_by_float32(arrays.class_weight), arrays.labels)
        truth = sface(rounded.embeddings, rounded.class_weight, rounded.labels, **SFACE)._asdict()
        for form in ("plain", "streamed"):
            inputs = {"kind": "sface", "form": form, "block_size": 4, **SFACE}
            scale = max(abs(truth["intra_loss"]), abs(truth["inter_loss"]))
            yield from _case(f"sface {form}", name, rounded, inputs, truth, scale)
        for head, margin in MARGINS.items():
            truth = margin_loss(head, *rounded, margin=margin or 0.0, step=STEP)._asdict()
            inputs = {"kind": "margin", "head": head, "scale": 64.0, "step": STEP}
            inputs |= {} if margin is None else {"margin": margin}
            yield from _case(head, name, rounded, inputs, truth, np.maximum(truth["loss"], 1))


def _planted(batch_size: int = 6, num_classes: int = 7) -> Inputs:
    """As near to the own prototype as to another: no cross-entropy is nearly 0, where only rounding would be left."""
    return planted(batch_size, num_classes, 64, intra_center=1.2, inter_center=1.2)


def _with_embedding(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Inputs:
    """The odd embedding is `change` of itself and of its own prototype."""
    case = _planted()
    case.embeddings[ODD] = change(case.embeddings[ODD], case.class_weight[case.labels[ODD]])
    return case


def _with_prototype(change: Callable[[np.ndarray], np.ndarray]) -> Inputs:
    """The prototype of the odd sample is `change` of itself."""
    case = _planted()
    own = case.labels[ODD]
    case.class_weight[own] = change(case.class_weight[own])
    return case


def _case(
    head: str, name: str, arrays: Inputs, inputs: Mapping[str, object], truth: dict[str, np.ndarray], loss_scale: float
) -> Iterable[Case]:
    checks = [Check(f"{head}, edges: loss", "loss", "loss", np.asarray(truth["loss"]), loss_scale)]
    if np.isfinite(truth["loss"]):
        for part in ("embeddings", "class_weight"):
            grad = truth[f"grad_{part}"]
            follows_norm = head == "softmax" or (head == "sphereface" and part == "embeddings")
            scale = _largest(grad, np.ones((len(grad), 1)) if follows_norm else _norms(getattr(arrays, part)))
            checks.append(Check(f"{head}, edges: gradients", "head gradients", f"grad_{part}", grad, scale))
    for dtype in DTYPES:
        given = as_arrays({**inputs, **arrays._asdict(), "dtype": dtype})
        yield Case(f"edge-{name}-{head.replace(' ', '-')}-{dtype}", dtype, given, checks)


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), NORM_FLOOR)


def _largest(gradient: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """The scale (rows, 1) of the error of each row, where gradients are inverse to `norms`.

    With one scale for all rows, that of a zero vector would hide all others: its gradient is divided by 1e-12.
    """
    return np.abs(gradient * norms).max() / norms
