"""What a backend is: a package of one framework, whose Trainer the loop drives. NumPy in, NumPy out."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from common.ranks import Ranks

if TYPE_CHECKING:  # at run time, `info` must work where packages are missing
    import numpy as np

    from common.config import RunConfig


@dataclass(frozen=True)
class Capabilities:
    """Options that only some backends offer. `Backend.check` refuses those that a backend lacks."""

    title: str  # name of the framework
    module: str  # by which Python imports it
    precisions: tuple[str, ...] = ("fp32", "fp64")  # of --precision: the keys of the package's runtime.PRECISIONS
    gpu_precisions: tuple[str, ...] | None = None  # of --precision on a GPU; None: the same
    compile: bool = False  # --compile
    class_sampling: bool = False  # --head.sample-rate below 1
    sync_batch_norm_in_one_process: bool = True  # --sync-batch-norm if one process drives several GPUs


CAPABILITIES = {
    "pytorch": Capabilities(
        "PyTorch", "torch", precisions=("fp32", "bf16", "fp16", "fp64"), compile=True, class_sampling=True
    ),
    "mxnet": Capabilities("MXNet", "mxnet", sync_batch_norm_in_one_process=False),
    # Jittor asks cuBLAS to add float64 products in float32, which cuBLAS refuses
    "jittor": Capabilities("Jittor", "jittor", gpu_precisions=("fp32",)),
}
BACKENDS = tuple(CAPABILITIES)
PREFIX = (__package__ or "").removesuffix("common")
"""Where the packages of this project stand: "" in a clone, "sface." where it is installed."""
METRICS = ("loss", "intra_loss", "inter_loss", "target_cosine", "other_cosine", "accuracy")
"""Numbers of a step that a head's result has and a trainer reports; a margin head has no `intra_loss`, `inter_loss`."""


@dataclass(frozen=True)
class Backend:
    """The package of a framework, with the modules trainer, runtime, launcher, distributed and backbones."""

    name: str

    @property
    def package(self) -> str:
        return f"{PREFIX}{self.name}_impl"

    def create_trainer(self, config: "RunConfig", num_classes: int) -> "Trainer":
        """The trainer of a checked configuration.

        Raises:
            ValueError: the backend does not offer an option, or there is no such device or backbone.
        """
        self.check(config)
        return self.module("trainer").Trainer(config, num_classes)

    def check(self, config: "RunConfig") -> None:
        """Raise a ValueError for an option that this backend does not offer; names the backends that do."""
        if self.name not in CAPABILITIES:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {self.name!r}")
        for option, expected, got in _refusals(self, CAPABILITIES[self.name], config):
            others = [
                offers.title
                for offers in CAPABILITIES.values()
                if option not in {refused for refused, *_ in _refusals(self, offers, config)}
            ]
            offered = f"; {' and '.join(others)} {'offers' if len(others) == 1 else 'offer'} it" if others else ""
            raise ValueError(f"{option}: expected {expected}, got {got}{offered}")

    def require_framework(self) -> None:
        """Raise a ModuleNotFoundError if the framework is not installed, without an import of it."""
        framework = CAPABILITIES.get(self.name)
        if framework is not None and importlib.util.find_spec(framework.module) is None:
            raise ModuleNotFoundError(f"{framework.title} is not installed")

    def module(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")

    def trains_on_gpu(self, config: "RunConfig") -> bool:
        return not str(self.module("runtime").resolve_device(config.device)).startswith("cpu")

    def drives_several_gpus(self, config: "RunConfig") -> bool:
        """Whether one process drives all devices of the run."""
        launcher = self.module("launcher")
        return config.devices > 1 and not (launcher.is_launched() or launcher.needs_launcher(config.device))


def how_to_install(requirements: str) -> str:
    """The command that installs what a file of `requirements/` lists: pytorch, mxnet, mxnet-cuda, jittor, demo ..."""
    return f'pip install "sface[{requirements}]"' if PREFIX else f"pip install -r requirements/{requirements}.txt"


def check_framework(backend: str) -> bool:
    """Whether the framework of a backend is installed. A command goes on without: `info` runs, others say it in a line.

    Raises:
        ModuleNotFoundError: it is not, and no command runs; says how to install it.
    """
    try:
        Backend(backend).require_framework()
    except ModuleNotFoundError as error:
        if sys.argv[:1] != ["-m"]:  # as Python has it while it imports the package of `python -m PACKAGE`
            raise ModuleNotFoundError(f"{error}; {how_to_install(backend)}") from None
        return False
    return True


def _refusals(backend: Backend, offers: Capabilities, config: "RunConfig") -> Iterator[tuple[str, str, object]]:
    """For each option of `config` that `offers` lacks: its name on the command line, what was expected, what came.

    Frameworks are imported only where the answer depends on the device.
    """
    if config.precision not in offers.precisions:
        yield "--precision", f"{' or '.join(offers.precisions)} with {offers.title}", config.precision
    elif offers.gpu_precisions and config.precision not in offers.gpu_precisions and backend.trains_on_gpu(config):
        expected = f"{' or '.join(offers.gpu_precisions)} with {offers.title} on {config.device}"
        yield "--precision", expected, config.precision
    if config.compile and not offers.compile:
        yield "--compile", f"false with {offers.title}", "true"
    if config.head.sample_rate != 1 and not offers.class_sampling:
        yield "--head.sample-rate", f"1 with {offers.title}", config.head.sample_rate
    if config.sync_batch_norm and not offers.sync_batch_norm_in_one_process and backend.drives_several_gpus(config):
        expected = (
            f"false with several GPUs in one process of {offers.title} "
            "(docs/many_devices.md starts a process for each GPU by hand)"
        )
        yield "--sync-batch-norm", expected, "true"


class Trainer(Protocol):
    """A backbone, a head and their optimiser on a device. Each rank has a trainer; all call the same methods."""

    ranks: Ranks

    def train_step(self, images: "np.ndarray", labels: "np.ndarray", learning_rate: float) -> None:
        """One optimiser step.

        Args:
            images: (N, 3, S, S) uint8, RGB, this rank's share of the batch; normalised on the device.
            labels: (N,) int64.
            learning_rate: of this step.

        Raises:
            ValueError: a label is out of range.

        The host must not wait for the device.
        """

    def metrics(self) -> dict[str, float]:
        """Loss and metrics of the last step over all ranks (the fields of SFaceResult); waits for the device."""

    def first_bad_step(self) -> int | None:
        """The first step, counted from 1, whose loss was not finite; None: no such step. Waits for the device.

        Steps before the last `load_state` do not count.
        """

    def embed(self, images: "np.ndarray") -> "np.ndarray":
        """Raw embeddings (N, D) float32 of (N, 3, S, S) uint8 images, in evaluation mode."""

    def state(self) -> "dict[str, np.ndarray]":
        """All that a resumed run needs: "backbone.*", "head.*", "momentum.*" under canonical names, random states.

        It does not depend on the number of ranks. Every rank calls it; only rank 0 is sure to get the whole.
        """

    def prototypes(self) -> "np.ndarray":
        """A copy of class_weight (C, D). Every rank calls it; only rank 0 is sure to get the whole."""

    def load_weights(self, state: "dict[str, np.ndarray]") -> None:
        """Load "backbone.*" and "head.*" of a `state()`; raises as `load_state`.

        Without "head.*" the head stays as it is.
        """

    def load_state(self, state: "dict[str, np.ndarray]", step: int) -> None:
        """Load a `state()` that was taken after `step` steps.

        Raises:
            ValueError: something does not fit; nothing was loaded.
        """

    def describe(self) -> dict[str, Any]:
        """Framework, version, device, threads, parameter counts: JSON values for the run's record."""


def check_labels(labels: "np.ndarray", num_classes: int) -> None:
    """Raise a ValueError for the first label that is not in 0 .. num_classes - 1; names the row."""
    (bad,) = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(bad):
        raise ValueError(f"labels: expected 0..{num_classes - 1}, got {labels[bad[0]]} at row {bad[0]}")
