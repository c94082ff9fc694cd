"""Levels 5 and 6: one step, and fifty steps with a drop of the learning rate."""

import functools
import json
from pathlib import Path

import numpy as np

from common import config as configuration
from common.config import DataConfig, HeadConfig, ModelConfig, OptimiserConfig, RunConfig
from parity_tests.cases.backbones import SPREAD_RUNS, disturbed, spreads
from parity_tests.comparison import FLOAT32_ROUNDING, Case, Check, as_arrays, held_by_float32
from parity_tests.setting import DEFAULT, DTYPES, REDUCED, Setting
from parity_tests.truth.training import TrueTrainer

PRECISION = {"float64": "fp64", "float32": "fp32"}


def train_config(dtype: str) -> RunConfig:
    """A small run. It has no dropout, since each backend draws its own."""
    return RunConfig(
        name="parity",
        data=DataConfig(root=Path("unused"), image_size=16),
        model=ModelConfig(backbone="iresnet_small", embedding_size=16, dropout=0.0),
        head=HeadConfig(),
        optimiser=OptimiserConfig(batch_size=8),
        device="cpu",
        precision=PRECISION[dtype],  # type: ignore[arg-type]  # the two are among the four
    )


NUM_CLASSES = 6


def train_inputs(config: RunConfig, steps: int, drop_at: int, rate: float) -> dict[str, object]:
    random = np.random.default_rng(1)
    size = config.data.image_size
    labels = random.integers(0, NUM_CLASSES, (steps, config.optimiser.batch_size))
    # patterns that can be learned: on pure noise the run is chaotic, and rounding errors grow without bound
    patterns = random.integers(0, 256, (NUM_CLASSES, 3, size, size))
    noise = random.normal(0, 20, (*labels.shape, 3, size, size))
    return {
        "kind": "train",
        "config": json.dumps(configuration.to_json(config)),
        "num_classes": NUM_CLASSES,
        "images": np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8),
        "labels": labels,
        "learning_rates": np.where(np.arange(steps) < drop_at, rate, rate / 10),
    }


@functools.cache
def step_cases(precision: str = DEFAULT.precision) -> list[Case]:
    """One step from weights, statistics and momentum that all differ from their initial values.

    Below float32 errors are relative to three times the spread of float64 steps, as in `backbone_cases`.
    """
    random = np.random.default_rng(5)
    start = {}
    for name, array in TrueTrainer(train_config("float64"), NUM_CLASSES).state().items():
        moved = 0.5 * random.standard_normal(array.shape) if name.startswith("momentum.") else array
        start[name] = held_by_float32(disturbed(name.removeprefix("backbone."), moved, random))
    config = train_config("float64")
    inputs = train_inputs(config, 1, 1, 0.1)
    after = _after_step(start, inputs)
    scales: dict[str, float] = {}
    if precision in REDUCED:
        rounding = REDUCED[precision].rounding
        scales = spreads(after, (_after_step(start, inputs, rounding, seed) for seed in range(SPREAD_RUNS)))
    cases = []
    for dtype in Setting(precision=precision).dtypes:
        checks = []
        for name, array in after.items():
            group = _group(name)
            # a weight moves by the learning rate times the new momentum
            step = np.abs(array if group == "momentum" else array - start.get(name, 0)).max()
            scale = config.head.scale if name == LOSSES else np.maximum(step, 1e-30)  # iresnet's last weight stays
            slack = np.abs(array) * FLOAT32_ROUNDING if dtype == "float32" and name != LOSSES else 0.0
            output = name if name == LOSSES else f"state.{name}"
            checks.append(Check(f"one step: {group}", "one step", output, array, scales.get(name, scale), slack))
        given = inputs | {"config": json.dumps(configuration.to_json(train_config(dtype)))}
        given |= {f"state.{name}": array.astype(dtype) for name, array in start.items()}
        if precision == "fp16":  # at the scale that PyTorch starts with, 2**16, the first step would overflow
            given |= {"state.scaler.scale": SCALE, "state.scaler.growth_tracker": 0}
        cases.append(Case(f"step-{dtype}", dtype, as_arrays(given), checks))
    return cases


LOSSES = "losses"
SCALE = 2.0**8


def _after_step(
    start: dict[str, np.ndarray], inputs: dict[str, object], noise: float = 0.0, seed: int = 0
) -> dict[str, np.ndarray]:
    """The state after one step, and `LOSSES`; with `noise` as if rounded."""
    trainer = TrueTrainer(train_config("float64"), NUM_CLASSES, noise=noise, noise_seed=seed)
    trainer.load_state(start)
    loss = trainer.train_step(inputs["images"][0], inputs["labels"][0], 0.1)  # type: ignore[index]
    return trainer.state() | {LOSSES: np.array([loss])}


GROUPS = ("weights", "momentum", "statistics")


def _group(name: str) -> str:
    if name == LOSSES:
        return "loss"
    return "momentum" if name.startswith("momentum.") else "statistics" if ".running_" in name else "weights"


STEPS, QUICK_STEPS, RATE = (50, 25), (12, 6), 1e-4  # number of steps, and the step at which the rate drops
ENVELOPE_RUNS, ENVELOPE_FACTOR = 4, 10.0


@functools.cache
def trajectory_cases(steps: int, drop_at: int) -> list[Case]:
    """Runs from the initial weights, with a drop of the learning rate.

    In float64 the errors are relative to the values. In float32 they are relative to ten times the spread of float64
    runs with a random float32 rounding in each operation.
    """
    inputs = train_inputs(train_config("float64"), steps, drop_at, RATE)
    losses, final, initial = true_trajectory(inputs)
    noisy = [true_trajectory(inputs, FLOAT32_ROUNDING, seed) for seed in range(ENVELOPE_RUNS)]
    loss_spread = np.maximum.accumulate(np.max([np.abs(n[0] - losses) for n in noisy], 0))
    largest = {group: max(np.abs(final[n]).max() for n in final if _group(n) == group) for group in GROUPS}
    cases = []
    for dtype in DTYPES:
        checks = []
        exact = dtype == "float64"
        for name, array in final.items():
            # a bias before a BatchNorm only collects rounding: scale by at least a thousandth of its group's largest
            size = np.maximum(np.abs(array).max(), 1e-3 * largest[_group(name)])
            spread = np.max([np.abs(n[1][name] - array).max() for n in noisy])
            scale = size if exact else ENVELOPE_FACTOR * np.maximum(spread, FLOAT32_ROUNDING * largest[_group(name)])
            row = f"trajectory: final {_group(name)}"
            checks.append(Check(row, "trajectory", f"state.{name}", array, scale))
        curve_scale = np.abs(losses).max()
        if not exact:
            curve_scale = ENVELOPE_FACTOR * np.maximum(loss_spread, 20 * FLOAT32_ROUNDING * curve_scale)
        checks.append(Check("trajectory: loss curve", "trajectory", "losses", losses, curve_scale))
        config = json.dumps(configuration.to_json(train_config(dtype)))
        cases.append(Case(f"trajectory-{dtype}", dtype, as_arrays(inputs | {"config": config}), checks))
        none = train_inputs(train_config(dtype), 0, 0, RATE) | {"config": config}
        checks = [
            Check("initial state", "initial state", f"state.{name}", array.astype(dtype), np.ones(()))
            for name, array in initial.items()
        ]
        cases.append(Case(f"initial-{dtype}", dtype, as_arrays(none), checks))
    return cases


def true_trajectory(
    inputs: dict[str, object], noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The truth: loss of each step, final state, initial state."""
    trainer = TrueTrainer(train_config("float64"), NUM_CLASSES, noise=noise, noise_seed=seed)
    initial = trainer.state()
    batches = zip(inputs["images"], inputs["labels"], inputs["learning_rates"], strict=True)  # type: ignore[call-overload]
    losses = [trainer.train_step(images, labels, rate) for images, labels, rate in batches]
    return np.array(losses), trainer.state(), initial
