"""Levels 1 to 3: losses, weights r and gradients of all heads."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.cases.edges import edge_cases
from parity_tests.cases.inputs import Case as Inputs
from parity_tests.cases.inputs import on_both_knees, planted
from parity_tests.comparison import (
    SFACE_PARAMETERS,
    Case,
    Check,
    as_arrays,
    held_by_float32,
    read_arrays,
    relative,
)
from parity_tests.setting import DTYPES
from parity_tests.truth import sface as oracle
from parity_tests.truth.margin_heads import margin_loss

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED_CENTERS = ((0.87, 1.20), (0.88, 1.25), (0.90, 1.20))


@functools.cache
def head_cases(quick: bool) -> list[Case]:
    return [*_sface_cases(quick), *_reduced_cases(), *_margin_cases(quick), *edge_cases(quick)]


def _sface_cases(quick: bool) -> Iterable[Case]:
    inputs: dict[str, tuple[Inputs, dict[str, Any], int]] = {}
    for a, b in PUBLISHED_CENTERS:
        centers = {"intra_center": a, "inter_center": b}
        inputs[f"knees-{a}-{b}"] = (on_both_knees(intra_center=a, inter_center=b), centers, 7)
    if not quick:
        default = {"intra_center": 0.87, "inter_center": 1.2}
        for shape in ((1, 2, 3), (7, 13, 5), (33, 101, 17)):
            inputs["odd-{}-{}-{}".format(*shape)] = (planted(*shape), default, 4)
        inputs["casia"] = (on_both_knees(8, 10572, 64), default, 1024)
        other = {"scale": 30.0, "intra_slope": 60.0, "inter_slope": 90.0, **default}
        inputs["two-slopes"] = (on_both_knees(), other, 7)
    for name, (arrays, given, block_size) in inputs.items():
        parameters: dict[str, Any] = {"scale": 64.0, "intra_slope": 80.0, "inter_slope": 80.0, **given}
        rounded = Inputs(held_by_float32(arrays.embeddings), held_by_float32(arrays.class_weight), arrays.labels)
        truth = oracle.sface(rounded.embeddings, rounded.class_weight, rounded.labels, **parameters)
        if name.startswith("knees"):
            assert_on_knees(truth, parameters["scale"])
        yield from _sface_case(name, rounded, parameters, block_size, truth._asdict())
        yield from _weight_cases(name, rounded, parameters, truth._asdict())
    for path in sorted(GOLDEN.glob("*.npz"))[: 1 if quick else None]:
        golden = read_arrays(path)
        arrays = Inputs(golden["embeddings"], golden["class_weight"], golden["labels"])
        yield from _sface_case(
            f"golden-{path.stem}", arrays, {n: float(golden[n]) for n in SFACE_PARAMETERS}, 64, golden
        )


def assert_on_knees(truth: oracle.SFaceTruth, scale: float) -> None:
    """Raise unless a fifth of the weights of each kind are between 0 and s: else a case does not test the sigmoids."""
    inter = truth.inter_weight[truth.inter_weight > 0]
    for name, weights in (("r_intra", truth.intra_weight), ("r_inter", inter)):
        share = np.mean((weights > 0.05 * scale) & (weights < 0.95 * scale))
        if share < 0.2:
            raise AssertionError(f"{name}: expected 20 % of the weights within 5 to 95 % of s, got {share:.0%}")


def _sface_case(
    name: str,
    arrays: Inputs,
    parameters: dict[str, float],
    block_size: int,
    truth: dict[str, np.ndarray],
    options: dict[str, Any] | None = None,
) -> Iterable[Case]:
    loss_scale = max(np.abs(truth["intra_loss"]).max(), np.abs(truth["inter_loss"]).max())
    for form in ("plain", "streamed"):
        head = f"sface {form}"
        losses = ("loss", "intra_loss", "inter_loss")
        rows = [f"{head}, weighted: losses"] * 3 if options else [f"{head}: {part}" for part in losses]
        checks = [
            Check(row, "loss", part, np.asarray(truth[part]), loss_scale)
            for row, part in zip(rows, losses, strict=True)
        ]
        checks += [
            check._replace(quantity=f"{head}, weighted: gradients") if options else check
            for check in _gradient_checks(head, truth)
        ]
        for dtype in DTYPES:
            inputs = {"kind": "sface", **arrays._asdict(), **parameters, "form": form, "block_size": block_size}
            inputs |= {"dtype": dtype} | (options or {})
            yield Case(f"sface-{name}-{form}-{dtype}", dtype, as_arrays(inputs), checks)


def _weight_cases(
    name: str, arrays: Inputs, parameters: dict[str, float], truth: dict[str, np.ndarray]
) -> Iterable[Case]:
    """r of the angles between embeddings and prototypes."""
    checks = [
        Check(f"sface: {part}", "weights", part, truth[part], parameters["scale"])
        for part in ("intra_weight", "inter_weight")
    ]
    for dtype in DTYPES:
        inputs = {"kind": "sface_weights", **arrays._asdict(), **parameters, "dtype": dtype}
        yield Case(f"weights-{name}-{dtype}", dtype, as_arrays(inputs), checks)


def _reduced_cases() -> Iterable[Case]:
    """Each reduction, with weights of samples: none, ordinary, negative and tiny ones."""
    arrays = on_both_knees()
    rounded = Inputs(held_by_float32(arrays.embeddings), held_by_float32(arrays.class_weight), arrays.labels)
    weights = held_by_float32(np.resize([1.0, 0.0, 2.5, -1.0, 1e-3], len(arrays.labels)))
    parameters: dict[str, Any] = dict(zip(SFACE_PARAMETERS, (64.0, 80.0, 80.0, 0.87, 1.2), strict=True))
    for reduction in ("mean", "sum", "none"):
        options: dict[str, Any] = {"reduction": reduction, "sample_weight": weights}
        truth = oracle.sface(*rounded, **parameters | options)._asdict()
        yield from _sface_case(reduction, rounded, parameters, 7, truth, options)


def _margin_cases(quick: bool) -> Iterable[Case]:
    heads: list[tuple[str, float | None, int]] = [
        ("softmax", None, 0),
        ("normalised-softmax", None, 0),
        ("cosface", 0.35, 0),
        ("arcface", 0.5, 0),
        ("sphereface", None, 700),
    ]
    if not quick:
        heads += [("sphereface", None, 0), ("sphereface", None, 60_000)]
    for head, margin, step in heads:
        for name, arrays in (("near", planted()), ("far", planted(intra_center=2.9, inter_center=1.5))):
            rounded = Inputs(held_by_float32(arrays.embeddings), held_by_float32(arrays.class_weight), arrays.labels)
            # a small loss is the difference of two large logits: the scale is at least 1
            truth = margin_loss(head, *rounded, margin=margin or 0.0, step=step)._asdict()
            checks = [Check(f"{head}: loss", "loss", "loss", np.asarray(truth["loss"]), np.maximum(truth["loss"], 1))]
            checks += _gradient_checks(head, truth)
            for dtype in DTYPES:
                inputs = {"kind": "margin", "head": head, "scale": 64.0, "step": step, **rounded._asdict()}
                inputs |= {"dtype": dtype} | ({} if margin is None else {"margin": margin})
                yield Case(f"margin-{head}-{step}-{name}-{dtype}", dtype, as_arrays(inputs), checks)


def _gradient_checks(name: str, truth: dict[str, np.ndarray]) -> list[Check]:
    parts = ("grad_embeddings", "grad_class_weight")
    return [relative(f"{name}: {part}", "head gradients", part, truth[part]) for part in parts]
