"""What usually causes a failing row of SFace: the truth is computed with each mistake, and compared with the answer.

The mistakes are those of `faults.py`, by the same names, here as edits of `truth/sface.py`.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from parity_tests.comparison import SFACE_PARAMETERS, Arrays, Case, Check
from parity_tests.truth import sface as truth

CLEARLY = 100  # a mistake explains nothing unless it changes a value by so many tolerances


class Mistake(NamedTuple):
    """Old and new texts of the truth's source, and the sentence that says so."""

    sentence: str
    edits: Mapping[str, str]


_DERIVATIVES = """    cotangents = cosines / np.sqrt(1 - cosines**2)
    g = factors[:, None] * r_inter * (1 + inter_slope * (1 - r_inter / scale) * cotangents)
    g[rows, labels] -= factors * r_intra * (1 - intra_slope * (1 - r_intra / scale) * cotangents[rows, labels])
"""
MISTAKES = {
    "r not detached": Mistake(
        "as if r had been differentiated",
        {
            "    g = factors[:, None] * r_inter\n": _DERIVATIVES,
            "    g[rows, labels] -= factors * r_intra\n": "",
        },
    ),
    "a and b swapped": Mistake(
        "as if a and b had been swapped",
        {"(theta - intra_center)": "(theta - inter_center)", "(theta - inter_center)": "(theta - intra_center)"},
    ),
    "slope 64": Mistake("as if the slope of r_intra had been 64", {"_sigmoid(intra_slope *": "_sigmoid(64 *"}),
    "no scale": Mistake(
        "as if r had no factor s",
        {"r_intra = scale * _sigmoid": "r_intra = _sigmoid", "r_inter = scale * _sigmoid": "r_inter = _sigmoid"},
    ),
    "cosine for angle": Mistake("as if r had been taken of cosines, not angles", {"np.arccos(cosines)": "cosines"}),
    "degrees for radians": Mistake(
        "as if angles had been in degrees", {"np.arccos(cosines)": "np.degrees(np.arccos(cosines))"}
    ),
    "scale inside arccos": Mistake(
        "as if cosines had been multiplied by s before arccos",
        {"np.arccos(cosines)": "np.arccos(np.clip(scale * cosines, -1, 1))"},
    ),
    "prototypes not normalised": Mistake(
        "as if class_weight had not been normalised",
        {
            "_unit(x), _unit(w)": "_unit(x), w",
            "    others = cosines": "    g[np.abs(unit_x @ unit_w.T) > 1] = 0\n    others = cosines",
            "_through_normalisation(g.T @ unit_x, w)": "g.T @ unit_x",
        },
    ),
    "no tangent projection": Mistake(
        "as if norms had been constants for the gradient", {"(grad_unit - radial * unit)": "grad_unit"}
    ),
    "target in the inter sum": Mistake(
        "as if the push had not left out the own class", {"    r_inter[rows, labels] = 0\n": ""}
    ),
    "sign of the pull": Mistake("as if the pull had the wrong sign", {"r_intra = scale": "r_intra = -scale"}),
    "sum for mean": Mistake("as if losses had been summed, not averaged", {"factors / len(x)": "factors"}),
    "no sample weight": Mistake(
        "as if sample_weight had been ignored",
        {" if sample_weight is None else np.asarray(sample_weight, np.float64)": ""},
    ),
}


def usual_causes(case: Case, quantities: Iterable[str], answer: Arrays) -> dict[str, str]:
    """For each quantity that is wrong in a case: a line on what usually causes such a difference, or "".

    A mistake is named if it gives all outputs of the quantity that are wrong, within tolerance, and no other does.
    """
    wrong = {
        quantity: [
            check
            for check in case.checks
            if check.quantity == quantity and check.output in answer and not _holds(check, case, answer)
        ]
        for quantity in quantities
    }
    causes = {quantity: _malformed(checks, answer) for quantity, checks in wrong.items()}
    if str(case.inputs["kind"]) not in ("sface", "sface_weights") or case.name.startswith("edge-"):
        return causes
    explaining: dict[str, list[str]] = {quantity: [] for quantity, cause in causes.items() if not cause}
    for name, mistake in MISTAKES.items() if explaining else ():
        mistaken = _with_mistake(name, case)
        for quantity, sentences in explaining.items():
            if all(_explains(mistaken[check.output], check, case, answer) for check in wrong[quantity]):
                sentences.append(mistake.sentence)
    return causes | {quantity: found[0] if len(found) == 1 else "" for quantity, found in explaining.items()}


def _malformed(checks: list[Check], answer: Arrays) -> str:
    """What is wrong with the first output that cannot be compared."""
    for check in checks:
        found = answer[check.output]
        if found.shape != check.truth.shape:
            return f"{check.output}: expected the shape {check.truth.shape}, got {found.shape}"
        if np.isfinite(check.truth).all() and not np.isfinite(found).all():
            return f"{check.output} is not finite"
    return ""


def _holds(check: Check, case: Case, answer: Arrays) -> bool:
    return check.error(answer[check.output]) <= case.tolerance(check)


def _explains(mistaken: np.ndarray, check: Check, case: Case, answer: Arrays) -> bool:
    """Whether an output is what a mistake gives, and the truth is far from that. Zeros have too many causes."""
    if not np.isfinite(mistaken).all() or not answer[check.output].any():
        return False
    clear = check.error(np.asarray(mistaken)) > CLEARLY * case.tolerance(check)
    scale = np.maximum(check.scale, np.abs(mistaken).max())
    return clear and _holds(check._replace(truth=np.asarray(mistaken), scale=scale), case, answer)


def _with_mistake(name: str, case: Case) -> dict[str, Any]:
    options: dict[str, Any] = {parameter: float(case.inputs[parameter]) for parameter in SFACE_PARAMETERS}
    if "reduction" in case.inputs:
        options |= {"reduction": str(case.inputs["reduction"]), "sample_weight": case.inputs["sample_weight"]}
    arrays = [case.inputs[part] for part in ("embeddings", "class_weight", "labels")]
    with np.errstate(all="ignore"):
        result: dict[str, Any] = mistaken_truth(name).sface(*arrays, **options)._asdict()
    return result


@functools.cache
def mistaken_truth(name: str) -> ModuleType:
    """`truth/sface.py` with a mistake.

    Raises:
        ValueError: an old text is not there exactly once.
    """
    source, edits = Path(truth.__file__).read_text("utf-8"), MISTAKES[name].edits
    for old in edits:
        if source.count(old) != 1:
            raise ValueError(f"{name}: expected {old!r} once in truth/sface.py, got {source.count(old)}")
    module = ModuleType(f"sface, {name}")
    edited = re.sub("|".join(map(re.escape, edits)), lambda match: edits[match[0]], source)
    exec(compile(edited, module.__name__, "exec"), module.__dict__)
    return module
