"""The worker's part of `python -m benchmarks head`: time and memory of the forms of a head in one backend."""

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.head.inputs import INPUTS
from common.io.memory import give_back_freed_memory, host_peak, reset_host_peak

SHORTEST = 0.05  # seconds of a measurement; a form that takes less is run several times
SFACE = ("plain", "streamed", "dense", "compiled", "screened")  # forms with the same results


def times(backend: str, case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each form, one a turn, and the errors of SFace's forms against the plain one.

    Args:
        backend: its name.
        case: inputs (of `INPUTS`), classes, batch, dim, device, inter_center, turns, forms.
    """
    module = importlib.import_module(f"benchmarks.backends.{backend}.head_forms")
    forms = module.head_forms(*_inputs(case), case["device"], case["inter_center"])
    first = {name: [module.to_numpy(a) for a in forms[name]()] for name in case["forms"] if name in SFACE}
    errors = {name: gradient_error(arrays, first["plain"]) for name, arrays in first.items() if "plain" in first}
    first.clear()
    seconds: dict[str, list[float]] = {name: [] for name in case["forms"]}
    for _ in range(case["turns"]):
        for name in case["forms"]:
            once = _time(forms[name], 1)  # the first run also pays for memory that another form left behind
            seconds[name].append(_time(forms[name], max(1, int(SHORTEST / once))))
    return {"seconds": seconds, "errors": errors}


def _time(form: Callable[[], object], times: int) -> float:
    """Seconds of a run."""
    start = time.perf_counter()
    for _ in range(times):
        form()
    return (time.perf_counter() - start) / times


def memory(backend: str, case: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of one run of `case["form"]` beyond its inputs, and the size of its gradients, bytes."""
    module = importlib.import_module(f"benchmarks.backends.{backend}.head_forms")
    small = INPUTS["random"](8, 4, case["dim"])
    module.head_forms(*small, case["device"], case["inter_center"])[
        case["form"]
    ]()  # what a framework takes once, whatever the size
    form = module.head_forms(*_inputs(case), case["device"], case["inter_center"])[case["form"]]
    give_back_freed_memory()  # freed while making the inputs: the form would use it and seem to need less
    reset_host_peak()
    before = host_peak()
    results = form()
    return {"bytes": host_peak() - before, "gradients": sum(module.to_numpy(array).nbytes for array in results)}


def gradient_error(arrays: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Largest difference of a gradient, relative to its largest value."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(arrays, truth, strict=True))


def _inputs(case: dict[str, Any]) -> tuple[np.ndarray, ...]:
    return INPUTS[case["inputs"]](case["classes"], case["batch"], case["dim"])
