"""One adapter a framework: how it answers the questions."""

from pathlib import Path

from common.backend import Backend
from common.config import DataConfig, RunConfig
from parity_tests.setting import REDUCED


def refusal(backend: str, device: str, precision: str) -> str | None:
    """Why a backend of the project does not offer a device or a precision below float32; None: it does."""
    offered = precision if precision in REDUCED else "fp32"
    config = RunConfig("parity", DataConfig(Path()), device=device, precision=offered)  # type: ignore[arg-type]
    try:
        Backend(backend).module("runtime").resolve_device(device)
        Backend(backend).check(config)
    except ValueError as error:
        return str(error)
    return None
