"""Level 4: every backbone, block by block, forward and backward."""

import functools

import numpy as np

from parity_tests.comparison import DTYPES, Case, Check, as_arrays, held_by_float32, relative
from parity_tests.truth.networks import Tape, Value, copy_arrays, forward


@functools.lru_cache(maxsize=1)
def backbone_cases(backbone: str, embedding_size: int = 16) -> list[Case]:
    """Cases at the smallest image size at which each layer of the network has more than one value a channel."""
    size, batch_size = (32 if backbone == "mobilefacenet" else 16), 8
    random = np.random.default_rng(0)
    images = held_by_float32(random.standard_normal((batch_size, 3, size, size)))
    grad_output = held_by_float32(random.standard_normal((batch_size, embedding_size)))
    drawing = Tape({})
    forward(drawing, backbone, Value(images[:1]), embedding_size)
    state = {name: held_by_float32(disturbed(name, array, random)) for name, array in drawing.arrays.items()}

    evaluated = Tape(copy_arrays(state))
    eval_output = forward(evaluated, backbone, Value(images), embedding_size)
    trained, x = Tape(copy_arrays(state), training=True), Value(images)
    train_output = forward(trained, backbone, x, embedding_size)
    trained.backward(train_output, grad_output)

    checks = []
    for mode, output, taps in (("eval", eval_output, evaluated.taps), ("train", train_output, trained.taps)):
        checks.append(relative(f"{backbone}: {mode} output", "backbone outputs", f"{mode}.output", output.data))
        checks += [relative(f"{backbone}: {mode} taps", "backbone outputs", f"{mode}.{n}", a) for n, a in taps.items()]
    checks += [
        relative(f"{backbone}: running statistics", "backbone outputs", f"after.{name}", array)
        for name, array in trained.arrays.items()
        if ".running_" in name
    ]
    checks += [relative(f"{backbone}: input gradient", "backbone gradients", "grad.input", x.grad)]
    # the true gradient of a bias before a BatchNorm is 0: the scale is at least a thousandth of the largest gradient
    floor = 1e-3 * max(np.abs(value.grad).max() for value in trained.parameters.values())
    for name, value in trained.parameters.items():
        if not (backbone.startswith("iresnet") and name == "features.weight"):
            scale = np.maximum(np.abs(value.grad).max(), floor)
            row = f"{backbone}: parameter gradients"
            checks.append(Check(row, "backbone gradients", f"grad.{name}", value.grad, scale))
    cases = []
    for dtype in DTYPES:
        inputs = {"kind": "backbone", "backbone": backbone, "images": images, "grad_output": grad_output}
        inputs |= {"dtype": dtype, "taps": np.array(list(evaluated.taps))}
        inputs |= {f"state.{name}": array for name, array in state.items()}
        cases.append(Case(f"backbone-{backbone}-{dtype}", dtype, as_arrays(inputs), checks))
    return cases


def disturbed(name: str, array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Moves an array away from its initial constant, with which a lost bias or swapped statistics would not show."""
    if name.endswith("running_var"):
        return random.uniform(0.5, 2, array.shape)
    if array.ndim == 1 and name != "features.weight":
        return array + 0.1 * random.standard_normal(array.shape)
    return array
