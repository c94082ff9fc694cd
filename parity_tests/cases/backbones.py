"""Level 4: every backbone, block by block, forward and backward."""

import functools
from collections.abc import Iterable, Mapping

import numpy as np

from parity_tests.comparison import Arrays, Case, Check, as_arrays, held_by_float32
from parity_tests.setting import DEFAULT, REDUCED, Setting
from parity_tests.truth.networks import Tape, Value, copy_arrays, forward, rounded

SPREAD_RUNS, SPREAD_FACTOR = 4, 3.0
IMAGES = "images"


@functools.lru_cache(maxsize=1)
def backbone_cases(backbone: str, embedding_size: int = 16, *, precision: str = DEFAULT.precision) -> list[Case]:
    """Cases at the smallest image size at which each layer of the network has more than one value a channel.

    Below float32 errors are relative to three times the spread of float64 runs in which weights, images and each
    operation are off by a rounding. So the bound is as wide as the depth of a network makes it.
    """
    size, batch_size = (32 if backbone.startswith("mobile") else 16), 8
    random = np.random.default_rng(0)
    images = held_by_float32(random.standard_normal((batch_size, 3, size, size)))
    grad_output = held_by_float32(random.standard_normal((batch_size, embedding_size)))
    drawing = Tape({})
    forward(drawing, backbone, Value(images[:1]), embedding_size)
    state = {name: held_by_float32(disturbed(name, array, random)) for name, array in drawing.arrays.items()}

    truth = _answer(backbone, state, images, grad_output)
    largest = {mode: truth.pop(f"{mode}.largest") for mode in ("eval", "train")}
    # the true gradient of a bias before a BatchNorm is 0: the scale is at least a thousandth of the largest gradient
    floor = 1e-3 * max(np.abs(array).max() for name, array in truth.items() if _is_parameter_gradient(name))
    scales = {
        name: np.maximum(np.abs(array).max(), floor if _is_parameter_gradient(name) else 0)
        for name, array in truth.items()
    }
    reduced = REDUCED.get(precision)
    if reduced:
        # deep networks fill the memory: each answer is dropped before the next
        noisy = (_answer(backbone, state, images, grad_output, reduced.rounding, seed) for seed in range(SPREAD_RUNS))
        scales = spreads(truth, noisy)
    checks = []
    for name, array in truth.items():
        row, tolerance = _row(name)
        over = reduced is not None and largest["eval" if name.startswith("eval.") else "train"] > reduced.largest / 2
        impossible = f"{precision} has no numbers this large" if over else ""
        checks.append(Check(f"{backbone}: {row}", tolerance, name, array, scales[name], impossible=impossible))
    taps = [name.removeprefix("eval.") for name in truth if name.startswith("eval.") and name != "eval.output"]
    cases = []
    for dtype in Setting(precision=precision).dtypes:
        inputs = {"kind": "backbone", "backbone": backbone, "images": images, "grad_output": grad_output}
        inputs |= {"dtype": dtype, "taps": np.array(taps)}
        inputs |= {f"state.{name}": array for name, array in state.items()}
        cases.append(Case(f"backbone-{backbone}-{dtype}", dtype, as_arrays(inputs), checks))
    return cases


def _answer(
    backbone: str, state: Arrays, images: np.ndarray, grad_output: np.ndarray, noise: float = 0.0, seed: int = 0
) -> Arrays:
    """What a backend should answer, and the largest value of each mode; with `noise` as if rounded."""
    random = np.random.default_rng(seed)
    given = rounded({**state, IMAGES: images}, noise, random) if noise else {**state, IMAGES: images}
    x = Value(given.pop(IMAGES))
    answer: Arrays = {}
    for mode in ("eval", "train"):
        tape = Tape(copy_arrays(given), training=mode == "train", noise=noise, random=random)
        output = forward(tape, backbone, x, grad_output.shape[1])
        answer |= {f"{mode}.output": output.data, f"{mode}.largest": tape.largest()}
        answer |= {f"{mode}.{name}": array for name, array in tape.taps.items()}
    answer |= {f"after.{name}": array for name, array in tape.arrays.items() if ".running_" in name}
    tape.backward(output, grad_output)
    fixed = "features.weight" if backbone.startswith("iresnet") else ""
    gradients = {f"grad.{name}": value.grad for name, value in tape.parameters.items() if name != fixed}
    return answer | {"grad.input": x.grad} | gradients


def spreads(truth: Mapping[str, np.ndarray], noisy: Iterable[Arrays]) -> dict[str, float]:
    """For each array of the truth: `SPREAD_FACTOR` times the largest distance of noisy answers from it."""
    found = dict.fromkeys(truth, 1e-30)  # a value that does not move must stay
    for answer in noisy:
        for name, array in truth.items():
            found[name] = max(found[name], SPREAD_FACTOR * float(np.abs(answer[name] - array).max()))
        del answer
    return found


def _is_parameter_gradient(name: str) -> bool:
    return name.startswith("grad.") and name != "grad.input"


def _row(output: str) -> tuple[str, str]:
    """The quantity of an output, and the key of its tolerance."""
    mode, _, name = output.partition(".")
    if mode == "grad":
        return ("input gradient" if name == "input" else "parameter gradients"), "backbone gradients"
    row = "running statistics" if mode == "after" else f"{mode} output" if name == "output" else f"{mode} taps"
    return row, "backbone outputs"


def disturbed(name: str, array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Moves an array away from its initial constant, with which a lost bias or swapped statistics would not show."""
    if name.endswith("running_var"):
        return random.uniform(0.5, 2, array.shape)
    if array.ndim == 1 and name != "features.weight":
        return array + 0.1 * random.standard_normal(array.shape)
    return array
