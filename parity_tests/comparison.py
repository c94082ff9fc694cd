"""Cases for a backend, checks of its answers, and rows of the table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from parity_tests.setting import DEFAULT, Setting
from parity_tests.tolerances import TOLERANCES

FLOAT32_ROUNDING = 2.0**-24
SFACE_PARAMETERS = ("scale", "intra_slope", "inter_slope", "intra_center", "inter_center")
Arrays = dict[str, np.ndarray]


class Check(NamedTuple):
    """Compares one output of a case with its truth: the largest |found - truth| beyond `slack`, over `scale`.

    Where the truth is not finite, the output must not be either.
    """

    quantity: str
    tolerance: str  # key of TOLERANCES
    output: str
    truth: np.ndarray
    scale: np.ndarray | float
    slack: np.ndarray | float = 0.0
    impossible: str = ""  # why no backend can give this output

    def error(self, found: np.ndarray) -> float:
        """The error; infinite if the shapes differ, or a value is not finite and the truth is."""
        if not np.isfinite(self.truth).all():
            return float("inf") if np.isfinite(found).all() else 0.0
        if found.shape != self.truth.shape or not np.isfinite(found).all():
            return float("inf")
        if self.tolerance in EXACT_QUANTITIES:
            return 0.0 if np.array_equal(found, self.truth) else float("inf")
        beyond = np.maximum(np.abs(found.astype(np.float64) - self.truth) - self.slack, 0)
        return float((beyond / self.scale).max(initial=0.0))


EXACT_QUANTITIES = frozenset(name for name, tolerance in TOLERANCES.items() if tolerance.float64 == 0)


class Case(NamedTuple):
    """Inputs for a worker, and the checks of its answer."""

    name: str
    dtype: str
    inputs: Arrays
    checks: list[Check]
    setting: Setting = DEFAULT

    def tolerance(self, check: Check) -> float:
        """The largest permitted error of one of the checks."""
        return TOLERANCES[check.tolerance].of(self.dtype, self.setting)

    def at(self, setting: Setting) -> "Case":
        """The same case, computed there."""
        return self._replace(setting=setting, inputs=self.inputs | setting.given(self.dtype))


class Row(NamedTuple):
    """The largest error of a backend in a quantity, or why there is none."""

    level: int
    quantity: str
    dtype: str
    backend: str
    error: float
    tolerance: float
    case: str
    note: str = ""  # what is missing, what usually causes the failure, or why it is known; details in further lines
    verdict: Literal["", "failed", "not provided", "known"] = ""  # if it is not by the error

    @property
    def status(self) -> str:
        """passed, failed, "not provided" or known; the last two do not fail a run."""
        return self.verdict or ("passed" if self.error <= self.tolerance else "failed")  # NaN fails

    @property
    def name(self) -> str:
        """What the patterns of --known match."""
        return f"{self.backend} {self.quantity} {self.dtype}"


ERROR, NOT_PROVIDED = "error", "not_provided"
"""The one text in an answer without outputs: what went wrong, or what a backend lacks."""


def why_missing(answer: Arrays, output: str) -> dict[str, Any]:
    """Note and verdict of a row whose output is not in the answer."""
    if NOT_PROVIDED in answer:
        return {"note": str(answer[NOT_PROVIDED]), "verdict": "not provided"}
    return {"note": str(answer[ERROR]) if ERROR in answer else f"gave no {output}, only {', '.join(answer)}"}


def relative(quantity: str, tolerance: str, output: str, truth: np.ndarray) -> Check:
    """A check relative to the largest value of the truth."""
    return Check(quantity, tolerance, output, truth, np.abs(truth).max())


def held_by_float32(array: np.ndarray) -> np.ndarray:
    """The values rounded to float32, as float64: both dtypes then have the same truth."""
    return array.astype(np.float32).astype(np.float64)


def read_arrays(path: Path) -> Arrays:
    """The arrays of an .npz file without pickles."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def as_arrays(values: Mapping[str, object]) -> Arrays:
    return {name: np.asarray(value) for name, value in values.items()}
