"""The largest permitted errors, each with its reason and the largest error measured so far.

Errors are relative; docs/parity.md says to what.
"""

from collections.abc import Mapping
from typing import NamedTuple

from parity_tests.setting import DEFAULT, REDUCED, Setting


class Tolerance(NamedTuple):
    """A bound on an error relative to the scale of the quantity."""

    level: int
    float64: float
    float32: float
    measured: Mapping[str, float]  # largest error of any backend, by `Setting.name`; what is not there is not measured
    reason: str
    cuda: float | None = None  # float32 on a CUDA device, where another bound is argued
    reduced: float | None = None  # below float32; None: as float32, in which it is computed

    def of(self, dtype: str, setting: Setting = DEFAULT) -> float:
        if dtype == "float64":
            return self.float64
        if setting.precision in REDUCED:
            return self.float32 if self.reduced is None else self.reduced
        return self.cuda if self.cuda is not None and setting.device != "cpu" else self.float32

    def why(self, setting: Setting) -> str:
        """The reason, on this device and in this precision."""
        if setting.precision in REDUCED:
            return f"{self.reason}; computed in float32" if self.reduced is None else ENVELOPE
        on_cuda = self.cuda is not None and setting.device != "cpu"
        return f"{self.reason}; {WINOGRAD}" if on_cuda else self.reason

    def measured_at(self, dtype: str, setting: Setting = DEFAULT) -> float | None:
        """The largest error of any backend; None: not measured."""
        return self.measured.get(setting.name(dtype))


WINOGRAD = "cuDNN may take Winograd's convolutions, which multiply the rounding error by up to ten"
ENVELOPE = "relative to three times the spread of float64 runs with a rounding of this precision in each operation"
EXACT = 0.0

# fmt: off
TOLERANCES = {
    "loss": Tolerance(1, 1e-11, 1e-5, {"cpu fp64": 1.9e-14, "cpu fp32": 2.7e-06,
         "cpu bf16": 2.6e-06, "cpu fp16": 2.6e-06},
        "float32: one ulp of a cosine is 6e-8, in r k / 4 = 20 times as much; the mean averages it out"),
    "weights": Tolerance(2, 1e-10, 5e-5, {"cpu fp64": 2.4e-16, "cpu fp32": 6.1e-06,
         "cpu bf16": 6.1e-06, "cpu fp16": 6.1e-06},
        "relative to s; 20 times (k / 4) the error of an angle, 1e-6 for cos near 1"),
    "head gradients": Tolerance(3, 1e-10, 2e-5, {"cpu fp64": 2.1e-14, "cpu fp32": 1.1e-05,
         "cpu bf16": 5.6e-06, "cpu fp16": 5.6e-06},
        "sums of r over classes or samples; the error is that of r"),
    "backbone outputs": Tolerance(4, 1e-9, 1e-4, {"cpu fp64": 1.8e-13, "cpu fp32": 2.5e-05,
         "cpu bf16": 2.1e-01, "cpu fp16": 2.0e-01},
        "BatchNorm over a batch of 8 divides by small variances; 200 layers amplify one ulp", 1e-3, 1.0),
    "backbone gradients": Tolerance(4, 1e-9, 2e-1, {"cpu fp64": 2.8e-13, "cpu fp32": 8.0e-02,
         "cpu bf16": 5.6e-01, "cpu fp16": 3.8e-01},
        "float32: where the input of a PReLU is within rounding of 0, its slope jumps to the other value", None, 1.0),
    "one step": Tolerance(5, 1e-9, 1e-5, {"cpu fp64": 1.5e-14, "cpu fp32": 5.4e-06,
         "cpu bf16": 5.8e-01, "cpu fp16": 3.2e-01},
        "relative to the step, beyond half a float32 ulp", 1e-4, 1.0),
    "initial state": Tolerance(6, EXACT, EXACT, {}, "drawn by NumPy from the seed and the name"),
    "trajectory": Tolerance(6, 1e-6, 1.0, {"cpu fp64": 3.2e-13, "cpu fp32": 5.2e-01},
        "float32: relative to ten times the spread of float64 runs with a float32 rounding in each operation", 10.0),
    "checkpoint": Tolerance(7, EXACT, EXACT, {}, "the same bits on disk, whoever wrote them"),
    "data": Tolerance(8, EXACT, EXACT, {}, "one loader and one protocol serve all backends"),
}
# fmt: on
