"""The largest permitted errors, each with its reason and the largest error measured so far.

Errors are relative; docs/parity.md says to what.
"""

from typing import Literal, NamedTuple

Dtype = Literal["float64", "float32"]


class Tolerance(NamedTuple):
    """A bound on an error relative to the scale of the quantity."""

    level: int
    float64: float
    float32: float
    measured: tuple[float, float]  # float64, float32: largest error of any backend
    reason: str

    def of(self, dtype: str) -> float:
        return self.float64 if dtype == "float64" else self.float32


EXACT = 0.0

# fmt: off
TOLERANCES = {
    "loss": Tolerance(1, 1e-11, 1e-5, (1.9e-14, 2.7e-06),
        "float32: one ulp of a cosine is 6e-8, in r k / 4 = 20 times as much; the mean averages it out"),
    "weights": Tolerance(2, 1e-10, 5e-5, (2.4e-16, 6.1e-06),
        "relative to s; 20 times (k / 4) the error of an angle, 1e-6 for cos near 1"),
    "head gradients": Tolerance(3, 1e-10, 2e-5, (2.1e-14, 1.1e-05),
        "sums of r over classes or samples; the error is that of r"),
    "backbone outputs": Tolerance(4, 1e-9, 1e-4, (1.8e-13, 2.5e-05),
        "BatchNorm over a batch of 8 divides by small variances; 200 layers amplify one ulp"),
    "backbone gradients": Tolerance(4, 1e-9, 2e-1, (2.8e-13, 8.0e-02),
        "float32: where the input of a PReLU is within rounding of 0, its slope jumps to the other value"),
    "one step": Tolerance(5, 1e-9, 1e-5, (1.5e-14, 5.4e-06), "relative to the step, beyond half a float32 ulp"),
    "initial state": Tolerance(6, EXACT, EXACT, (0.0, 0.0), "drawn by NumPy from the seed and the name"),
    "trajectory": Tolerance(6, 1e-6, 1.0, (3.2e-13, 5.2e-01),
        "float32: relative to ten times the spread of float64 runs with a float32 rounding in each operation"),
    "checkpoint": Tolerance(7, EXACT, EXACT, (0.0, 0.0), "the same bits on disk, whoever wrote them"),
    "data": Tolerance(8, EXACT, EXACT, (0.0, 0.0), "one loader and one protocol serve all backends"),
}
# fmt: on
