"""python -m benchmarks.head.worker CASE: times the forms of a head in one backend, in turns; prints one JSON line.

CASE is JSON: {"backend", "inputs", "classes", "batch", "dim", "device", "turns", "forms"}. With "memory": FORM it runs
that form once instead, and says how much memory that took beyond the inputs.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

import numpy as np

from benchmarks.head.inputs import INPUTS
from common.io.memory import give_back_freed_memory, host_peak, reset_host_peak

SFACE = ("plain", "streamed", "dense", "compiled")  # forms with the same results


def main(arguments: list[str]) -> int:
    case = json.loads(arguments[0])
    # frameworks print what they compile: stdout is for the answer alone
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    backend = importlib.import_module(f"benchmarks.backends.{case['backend']}.head_forms")
    inputs = INPUTS[case["inputs"]](case["classes"], case["batch"], case["dim"])
    with answer:
        json.dump(_memory(backend, case, inputs) if "memory" in case else _times(backend, case, inputs), answer)
    return 0


def _times(backend: Any, case: dict[str, Any], inputs: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """Seconds of each form, one a turn, of the second of two runs; errors against the plain form."""
    forms = backend.head_forms(*inputs, case["device"])
    first = {name: [backend.to_numpy(a) for a in forms[name]()] for name in case["forms"] if name in SFACE}
    errors = {name: _error(arrays, first["plain"]) for name, arrays in first.items() if "plain" in first}
    first.clear()
    seconds: dict[str, list[float]] = {name: [] for name in case["forms"]}
    for _ in range(case["turns"]):
        for name in case["forms"]:
            forms[name]()  # the memory that another form left behind is no part of this one's time
            start = time.perf_counter()
            forms[name]()
            seconds[name].append(time.perf_counter() - start)
    return {"seconds": seconds, "errors": errors}


def _error(arrays: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Largest difference of a gradient, of that gradient's largest value."""
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(arrays, truth, strict=True))


def _memory(backend: Any, case: dict[str, Any], inputs: tuple[np.ndarray, ...]) -> dict[str, Any]:
    small = INPUTS["random"](8, 4, case["dim"])
    backend.head_forms(*small, case["device"])[case["memory"]]()  # what a framework takes once, whatever the size
    form = backend.head_forms(*inputs, case["device"])[case["memory"]]
    give_back_freed_memory()  # of making the inputs: the form would find it and seem to need less
    reset_host_peak()
    before = host_peak()
    results = form()
    return {"bytes": host_peak() - before, "gradients": sum(backend.to_numpy(array).nbytes for array in results)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
