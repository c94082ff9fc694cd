"""What the suite hands to a backend, what it holds the answers against, and what comes out."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from parity_tests.tolerances import TOLERANCES

DTYPES = ("float64", "float32")
FLOAT32_ROUNDING = 2.0**-24


class Check(NamedTuple):
    """One output of a case against its truth: largest |found - truth| beyond `slack`, divided by `scale`."""

    quantity: str
    tolerance: str  # key of TOLERANCES
    output: str
    truth: np.ndarray
    scale: np.ndarray | float
    slack: np.ndarray | float = 0.0

    def error(self, found: np.ndarray) -> float:
        """Infinite where shapes differ or a value is not finite."""
        if found.shape != self.truth.shape or not np.isfinite(found).all():
            return float("inf")
        if self.tolerance in EXACT_QUANTITIES:
            return 0.0 if np.array_equal(found, self.truth) else float("inf")
        beyond = np.maximum(np.abs(found.astype(np.float64) - self.truth) - self.slack, 0)
        return float((beyond / self.scale).max(initial=0.0))


EXACT_QUANTITIES = frozenset(name for name, tolerance in TOLERANCES.items() if tolerance.float64 == 0)


class Case(NamedTuple):
    """What a worker is handed, and what its answer is held against."""

    name: str
    dtype: str
    inputs: dict[str, np.ndarray]
    checks: list[Check]


class Row(NamedTuple):
    """The worst error of a backend in a quantity."""

    level: int
    quantity: str
    dtype: str
    backend: str
    error: float
    tolerance: float
    case: str

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


def relative(quantity: str, tolerance: str, output: str, truth: np.ndarray) -> Check:
    return Check(quantity, tolerance, output, truth, np.abs(truth).max())


def held_by_float32(array: np.ndarray) -> np.ndarray:
    """Values that float32 holds exactly, so that both dtypes have the same truth."""
    return array.astype(np.float32).astype(np.float64)


def as_arrays(values: Mapping[str, object]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}
