"""Where and how precisely the backends compute in a run of the suite."""

from typing import NamedTuple

import numpy as np


class Reduced(NamedTuple):
    """A precision below float32."""

    rounding: float  # largest relative error of a rounded number
    largest: float


REDUCED = {
    "bf16": Reduced(2.0**-8, np.inf),  # the exponent is that of float32
    "fp16": Reduced(2.0**-11, 65504.0),
    "tf32": Reduced(2.0**-11, np.inf),
}
PRECISIONS = ("fp32", *REDUCED)
DTYPES = ("float64", "float32")


class Setting(NamedTuple):
    """Device and precision of the backbone."""

    device: str = "cpu"
    precision: str = "fp32"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes of the rows: float64 has no reduced precision."""
        return DTYPES[1:] if self.precision in REDUCED else DTYPES

    def name(self, dtype: str) -> str:
        """Kind of device and precision, by which tolerances are measured; "fp64" for float64."""
        return f"{self.device.partition(':')[0]} {'fp64' if dtype == 'float64' else self.precision}"

    def given(self, dtype: str) -> dict[str, np.ndarray]:
        """What a case says of it: nothing of the CPU in fp32 and fp64."""
        if self == Setting():
            return {}
        return {"device": np.array(self.device), "precision": np.array(self.name(dtype).split()[1])}


DEFAULT = Setting()
