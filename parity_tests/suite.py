"""The cases of the parity suite, the backends' answers to them, and the comparison with the truth."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import config as configuration
from common.config import DataConfig, HeadConfig, ModelConfig, OptimiserConfig, RunConfig
from parity_tests import oracle
from parity_tests.cases import Case as Inputs
from parity_tests.cases import on_both_knees, planted
from parity_tests.margin_oracle import margin_loss
from parity_tests.networks import Tape, Value, copy_arrays, forward
from parity_tests.tolerances import TOLERANCES
from parity_tests.training import TrueTrainer

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "parity_tests" / "golden"
BACKENDS = ("pytorch", "mxnet", "jittor")
LEVELS = (1, 2, 3, 4, 5, 6, 7, 8)
DTYPES = ("float64", "float32")
PRECISION = {"float64": "fp64", "float32": "fp32"}
BACKBONES = (
    "iresnet_small",
    *(f"iresnet{depth}" for depth in (18, 34, 50, 100, 152, 200)),
    *(f"{family}{depth}" for family in ("ir", "ir_se") for depth in (50, 101, 152)),
    "mobilefacenet",
)
PUBLISHED_CENTERS = ((0.87, 1.20), (0.88, 1.25), (0.90, 1.20))
FLOAT32_ROUNDING = 2.0**-24


class Check(NamedTuple):
    """One output of a case against its truth: largest |found - truth| beyond `slack`, divided by `scale`."""

    quantity: str
    tolerance: str  # key of TOLERANCES
    output: str
    truth: np.ndarray
    scale: np.ndarray | float
    slack: np.ndarray | float = 0.0

    def error(self, found: np.ndarray) -> float:
        """Infinite where shapes differ or a value is not finite."""
        if found.shape != self.truth.shape or not np.isfinite(found).all():
            return float("inf")
        if self.tolerance in EXACT_QUANTITIES:
            return 0.0 if np.array_equal(found, self.truth) else float("inf")
        beyond = np.maximum(np.abs(found.astype(np.float64) - self.truth) - self.slack, 0)
        return float((beyond / self.scale).max(initial=0.0))


EXACT_QUANTITIES = frozenset(name for name, tolerance in TOLERANCES.items() if tolerance.float64 == 0)


class Case(NamedTuple):
    """What a worker is handed, and what its answer is held against."""

    name: str
    dtype: str
    inputs: dict[str, np.ndarray]
    checks: list[Check]


class Row(NamedTuple):
    """The worst error of a backend in a quantity."""

    level: int
    quantity: str
    dtype: str
    backend: str
    error: float
    tolerance: float
    case: str

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


class BackendFailed(RuntimeError):
    """A backend that was to be covered gave no answer; the message ends with what its process printed last."""


def run(
    backends: Sequence[str],
    levels: Iterable[int] = LEVELS,
    backbones: Sequence[str] = BACKBONES,
    *,
    quick: bool = False,
    root: Path = ROOT,
) -> list[Row]:
    """All rows of the table; `quick` keeps one case of each kind and short runs, for the tests of the suite itself;
    `root` is where the backends' packages lie.

    Raises:
        BackendFailed: a backend cannot run.
    """
    wanted = frozenset(levels)
    rows: list[Row] = []
    for cases in _groups(wanted, backbones, quick):
        for backend in backends:
            answers = ask(backend, {case.name: case.inputs for case in cases}, root)
            rows += _compare(backend, cases, answers, wanted)
    if 7 in wanted:
        rows += _checkpoints(backends, root, DTYPES[:1] if quick else DTYPES)
    return sorted(
        _worst(rows), key=lambda row: (row.level, row.quantity, row.dtype != "float64", backends.index(row.backend))
    )


def ask(backend: str, cases: dict[str, dict[str, np.ndarray]], root: Path = ROOT) -> dict[str, dict[str, np.ndarray]]:
    """The answers of one backend, from a process of its own: frameworks clash within one.

    The interpreter is `SFACE_PYTHON_<BACKEND>` where that is set, else this one.
    """
    python = os.environ.get(f"SFACE_PYTHON_{backend.upper().replace('.', '_')}", sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        for name, inputs in cases.items():
            np.savez(source / f"{name}.npz", **inputs)
        done = subprocess.run(
            [python, "-m", "parity_tests.worker", backend, str(source), str(target)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(ROOT)])},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BackendFailed(f"{backend}: its process ended with {done.returncode}: {done.stderr[-2000:].strip()}")
        answers = {}
        for name in cases:
            with np.load(target / f"{name}.npz", allow_pickle=False) as file:
                answers[name] = dict(file)
        return answers


def _compare(
    backend: str, cases: list[Case], answers: dict[str, dict[str, np.ndarray]], levels: frozenset[int]
) -> list[Row]:
    rows = []
    for case in cases:
        for check in case.checks:
            tolerance = TOLERANCES[check.tolerance]
            if tolerance.level in levels:
                found = answers[case.name].get(check.output)
                error = float("inf") if found is None else check.error(found)
                bound = tolerance.of(case.dtype)
                rows.append(Row(tolerance.level, check.quantity, case.dtype, backend, error, bound, case.name))
    return rows


def _groups(levels: frozenset[int], backbones: Sequence[str], quick: bool) -> Iterable[list[Case]]:
    """Cases that one process of a backend answers; each backbone is a group, as the deep ones fill the memory."""
    groups: list[Callable[[], list[Case]]] = []
    if levels & {1, 2, 3}:
        groups.append(lambda: _head_cases(quick))
    if 4 in levels:
        groups += [functools.partial(_backbone_cases, backbone) for backbone in backbones]
    if 5 in levels:
        groups.append(_step_cases)
    if 6 in levels:
        groups.append(lambda: _trajectory_cases(*QUICK_STEPS) if quick else _trajectory_cases(*STEPS))
    if 8 in levels:
        groups.append(_data_cases)
    for group in groups:
        yield group()


@functools.cache
def _head_cases(quick: bool) -> list[Case]:
    return [*_sface_cases(quick), *_margin_cases(quick)]


def _sface_cases(quick: bool) -> Iterable[Case]:
    inputs: dict[str, tuple[Inputs, dict[str, float], int]] = {}
    for a, b in PUBLISHED_CENTERS:
        parameters = {"intra_center": a, "inter_center": b}
        inputs[f"knees-{a}-{b}"] = (on_both_knees(intra_center=a, inter_center=b), parameters, 7)
    if not quick:
        default = {"intra_center": 0.87, "inter_center": 1.2}
        for shape in ((1, 2, 3), (7, 13, 5), (33, 101, 17)):
            inputs["odd-{}-{}-{}".format(*shape)] = (planted(*shape), default, 4)
        inputs["casia"] = (on_both_knees(8, 10572, 64), default, 1024)
        other = {"scale": 30.0, "intra_slope": 60.0, "inter_slope": 90.0, **default}
        inputs["two-slopes"] = (on_both_knees(), other, 7)
    for name, (arrays, given, block_size) in inputs.items():
        parameters = {"scale": 64.0, "intra_slope": 80.0, "inter_slope": 80.0, **given}
        rounded = Inputs(_rounded(arrays.embeddings), _rounded(arrays.class_weight), arrays.labels)
        truth = oracle.sface(rounded.embeddings, rounded.class_weight, rounded.labels, **parameters)
        if name.startswith("knees"):
            assert_on_knees(truth, parameters["scale"])
        yield from _sface_case(name, rounded, parameters, block_size, truth._asdict())
    for path in sorted(GOLDEN.glob("*.npz"))[: 1 if quick else None]:
        golden = dict(np.load(path, allow_pickle=False))
        names = ("scale", "intra_slope", "inter_slope", "intra_center", "inter_center")
        arrays = Inputs(golden["embeddings"], golden["class_weight"], golden["labels"])
        yield from _sface_case(f"golden-{path.stem}", arrays, {n: float(golden[n]) for n in names}, 64, golden)


def assert_on_knees(truth: oracle.SFaceTruth, scale: float) -> None:
    """At least a fifth of the weights of each kind must be neither 0 nor s: elsewhere a case tests no sigmoid."""
    inter = truth.inter_weight[truth.inter_weight > 0]
    for name, weights in (("r_intra", truth.intra_weight), ("r_inter", inter)):
        share = np.mean((weights > 0.05 * scale) & (weights < 0.95 * scale))
        if share < 0.2:
            raise AssertionError(f"{name}: expected 20 % of the weights within 5 to 95 % of s, got {share:.0%}")


def _sface_case(
    name: str, arrays: Inputs, parameters: dict[str, float], block_size: int, truth: dict[str, np.ndarray]
) -> Iterable[Case]:
    loss_scale = max(abs(truth["intra_loss"]), abs(truth["inter_loss"]))
    for form in ("plain", "streamed"):
        checks = [
            Check(f"sface {form}: {part}", "loss", part, np.asarray(truth[part]), loss_scale)
            for part in ("loss", "intra_loss", "inter_loss")
        ]
        if form == "plain" and "intra_weight" in truth:
            checks += [
                Check(f"sface {form}: {part}", "weights", part, truth[part], parameters["scale"])
                for part in ("intra_weight", "inter_weight")
            ]
        checks += _gradient_checks(f"sface {form}", truth)
        for dtype in DTYPES:
            inputs = {"kind": "sface", **arrays._asdict(), **parameters, "form": form, "block_size": block_size}
            yield Case(f"sface-{name}-{form}-{dtype}", dtype, _arrays(inputs | {"dtype": dtype}), checks)


def _margin_cases(quick: bool) -> Iterable[Case]:
    heads: list[tuple[str, float | None, int]] = [
        ("softmax", None, 0),
        ("normalised-softmax", None, 0),
        ("cosface", 0.35, 0),
        ("arcface", 0.5, 0),
        ("sphereface", None, 700),
    ]
    if not quick:
        heads += [("sphereface", None, 0), ("sphereface", None, 60_000)]
    for head, margin, step in heads:
        for name, arrays in (("near", planted()), ("far", planted(intra_center=2.9, inter_center=1.5))):
            rounded = Inputs(_rounded(arrays.embeddings), _rounded(arrays.class_weight), arrays.labels)
            # a small loss is the difference of two large logits: no scale below 1
            truth = margin_loss(head, *rounded, margin=margin or 0.0, step=step)._asdict()
            checks = [Check(f"{head}: loss", "loss", "loss", np.asarray(truth["loss"]), np.maximum(truth["loss"], 1))]
            checks += _gradient_checks(head, truth)
            for dtype in DTYPES:
                inputs = {"kind": "margin", "head": head, "scale": 64.0, "step": step, **rounded._asdict()}
                inputs |= {"dtype": dtype} | ({} if margin is None else {"margin": margin})
                yield Case(f"margin-{head}-{step}-{name}-{dtype}", dtype, _arrays(inputs), checks)


def _gradient_checks(name: str, truth: dict[str, np.ndarray]) -> list[Check]:
    return [
        Check(f"{name}: {part}", "head gradients", part, truth[part], np.abs(truth[part]).max())
        for part in ("grad_embeddings", "grad_class_weight")
    ]


@functools.lru_cache(maxsize=1)
def _backbone_cases(backbone: str, embedding_size: int = 16) -> list[Case]:
    """At the smallest size that a network takes, where each layer still has more than one value a channel."""
    size, batch_size = (32 if backbone == "mobilefacenet" else 16), 8
    random = np.random.default_rng(0)
    images = _rounded(random.standard_normal((batch_size, 3, size, size)))
    grad_output = _rounded(random.standard_normal((batch_size, embedding_size)))
    drawing = Tape({})
    forward(drawing, backbone, Value(images[:1]), embedding_size)
    state = {name: _rounded(disturbed(name, array, random)) for name, array in drawing.arrays.items()}

    evaluated = Tape(copy_arrays(state))
    eval_output = forward(evaluated, backbone, Value(images), embedding_size)
    trained, x = Tape(copy_arrays(state), training=True), Value(images)
    train_output = forward(trained, backbone, x, embedding_size)
    trained.backward(train_output, grad_output)

    checks = [_relative(f"{backbone}: eval output", "backbone outputs", "eval.output", eval_output.data)]
    checks += [
        _relative(f"{backbone}: eval taps", "backbone outputs", f"eval.{n}", a) for n, a in evaluated.taps.items()
    ]
    checks += [_relative(f"{backbone}: train output", "backbone outputs", "train.output", train_output.data)]
    checks += [
        _relative(f"{backbone}: train taps", "backbone outputs", f"train.{n}", a) for n, a in trained.taps.items()
    ]
    checks += [
        _relative(f"{backbone}: running statistics", "backbone outputs", f"after.{name}", array)
        for name, array in trained.arrays.items()
        if ".running_" in name
    ]
    checks += [_relative(f"{backbone}: input gradient", "backbone gradients", "grad.input", x.grad)]
    # a bias before a BatchNorm has no gradient but rounding: no scale below a thousandth of the network's largest
    floor = 1e-3 * max(np.abs(value.grad).max() for value in trained.parameters.values())
    for name, value in trained.parameters.items():
        if not (backbone.startswith("iresnet") and name == "features.weight"):
            scale = np.maximum(np.abs(value.grad).max(), floor)
            checks.append(
                Check(f"{backbone}: parameter gradients", "backbone gradients", f"grad.{name}", value.grad, scale)
            )
    cases = []
    for dtype in DTYPES:
        inputs = {"kind": "backbone", "backbone": backbone, "images": images, "grad_output": grad_output}
        inputs |= {"dtype": dtype, "taps": np.array(list(evaluated.taps))}
        inputs |= {f"state.{name}": array for name, array in state.items()}
        cases.append(Case(f"backbone-{backbone}-{dtype}", dtype, _arrays(inputs), checks))
    return cases


def disturbed(name: str, array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Away from the constants of the start, under which a lost bias or a swapped statistic would not show."""
    if name.endswith("running_var"):
        return random.uniform(0.5, 2, array.shape)
    if array.ndim == 1 and name != "features.weight":
        return array + 0.1 * random.standard_normal(array.shape)
    return array


def train_config(dtype: str) -> RunConfig:
    """A small run without dropout: each backend draws its own."""
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


def _train_inputs(config: RunConfig, steps: int, drop_at: int, rate: float) -> dict[str, object]:
    random = np.random.default_rng(1)
    size = config.data.image_size
    labels = random.integers(0, NUM_CLASSES, (steps, config.optimiser.batch_size))
    # something to learn: on pure noise the run is chaotic, and a rounding error grows past any use
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
def _step_cases() -> list[Case]:
    """One step from weights, statistics and momentum that are all away from their start."""
    random = np.random.default_rng(5)
    trainer = TrueTrainer(train_config("float64"), NUM_CLASSES)
    start = {}
    for name, array in trainer.state().items():
        moved = 0.5 * random.standard_normal(array.shape) if name.startswith("momentum.") else array
        start[name] = _rounded(disturbed(name.removeprefix("backbone."), moved, random))
    trainer.load_state(start)
    inputs = _train_inputs(trainer.config, 1, 1, 0.1)
    loss = trainer.train_step(inputs["images"][0], inputs["labels"][0], 0.1)  # type: ignore[index]
    after = trainer.state()
    cases = []
    for dtype in DTYPES:
        checks = [Check("one step: loss", "one step", "losses", np.array([loss]), trainer.config.head.scale)]
        for name, array in after.items():
            group = _group(name)
            # the step is the learning rate times the new momentum
            step = np.abs(array if group == "momentum" else array - start[name]).max()
            slack = np.abs(array) * FLOAT32_ROUNDING if dtype == "float32" else 0.0
            scale = np.maximum(step, 1e-30)  # the weight of iresnet's last BatchNorm does not move
            checks.append(Check(f"one step: {group}", "one step", f"state.{name}", array, scale, slack))
        given = inputs | {"config": json.dumps(configuration.to_json(train_config(dtype)))}
        given |= {f"state.{name}": array.astype(dtype) for name, array in start.items()}
        cases.append(Case(f"step-{dtype}", dtype, _arrays(given), checks))
    return cases


GROUPS = ("weights", "momentum", "statistics")


def _group(name: str) -> str:
    return "momentum" if name.startswith("momentum.") else "statistics" if ".running_" in name else "weights"


STEPS, QUICK_STEPS, RATE = (50, 25), (12, 6), 1e-4  # steps, and the one before which the rate drops
ENVELOPE_RUNS, ENVELOPE_FACTOR = 4, 10.0


@functools.cache
def _trajectory_cases(steps: int, drop_at: int) -> list[Case]:
    """From the initial bits, across a drop of the learning rate."""
    inputs = _train_inputs(train_config("float64"), steps, drop_at, RATE)
    losses, final, initial = _true_trajectory(inputs)
    noisy = [_true_trajectory(inputs, FLOAT32_ROUNDING, seed) for seed in range(ENVELOPE_RUNS)]
    loss_spread = np.maximum.accumulate(np.max([np.abs(n[0] - losses) for n in noisy], 0))
    largest = {group: max(np.abs(final[n]).max() for n in final if _group(n) == group) for group in GROUPS}
    cases = []
    for dtype in DTYPES:
        checks = []
        exact = dtype == "float64"
        for name, array in final.items():
            # a bias before a BatchNorm has no gradient but rounding: no scale below a thousandth of its group's largest
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
        cases.append(Case(f"trajectory-{dtype}", dtype, _arrays(inputs | {"config": config}), checks))
        none = _train_inputs(train_config(dtype), 0, 0, RATE) | {"config": config}
        checks = [
            Check("initial state", "initial state", f"state.{name}", array.astype(dtype), np.ones(()))
            for name, array in initial.items()
        ]
        cases.append(Case(f"initial-{dtype}", dtype, _arrays(none), checks))
    return cases


def _true_trajectory(
    inputs: dict[str, object], noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Loss of each step, final and initial state."""
    trainer = TrueTrainer(train_config("float64"), NUM_CLASSES, noise=noise, noise_seed=seed)
    initial = trainer.state()
    batches = zip(inputs["images"], inputs["labels"], inputs["learning_rates"], strict=True)  # type: ignore[call-overload]
    losses = [trainer.train_step(images, labels, rate) for images, labels, rate in batches]
    return np.array(losses), trainer.state(), initial


def _checkpoints(backends: Sequence[str], root: Path, dtypes: Sequence[str]) -> list[Row]:
    """Each backend trains and saves, the next goes on from that file, then the one after it; and all that loads and
    saves again gives the same bits."""
    rows = []
    for dtype in dtypes:
        inputs = _train_inputs(train_config(dtype), 9, 5, RATE)
        truth = _true_trajectory(inputs)[0] if dtype == "float64" else None
        for number, first in enumerate(backends):
            order = [backends[(number + i) % len(backends)] for i in range(3)]
            with tempfile.TemporaryDirectory() as folder:
                losses: list[np.ndarray] = []
                states: list[dict[str, np.ndarray]] = []
                again: dict[str, np.ndarray] = {}
                for turn, backend in enumerate(order):
                    steps = slice(3 * turn, 3 * turn + 3)
                    part = {name: inputs[name][steps] for name in ("images", "labels", "learning_rates")}  # type: ignore[index]
                    given = inputs | part | {"save": str(Path(folder) / str(turn))}
                    asked = {"train": given}
                    if turn:
                        resume = {"resume": str(Path(folder) / str(turn - 1) / f"step-{3 * turn:08d}")}
                        nothing = {name: array[:0] for name, array in part.items()}
                        asked = {"train": given | resume, "again": inputs | nothing | resume}
                    answers = ask(backend, {name: _arrays(case) for name, case in asked.items()}, root)
                    if turn:
                        again = answers["again"]
                        rows.append(_same_bits(backend, dtype, order[turn - 1], states[-1], again))
                    losses.append(answers["train"]["losses"])
                    states.append(answers["train"])
            if truth is not None:
                check = Check("", "trajectory", "losses", truth, np.abs(truth).max())
                error = check.error(np.concatenate(losses))
                name = "checkpoint: " + " -> ".join(("A", "B", "C"))
                tolerance = TOLERANCES["trajectory"].float64
                rows.append(Row(7, f"{name} losses", dtype, first, error, tolerance, " -> ".join(order)))
    return _worst(rows)


def _same_bits(
    backend: str, dtype: str, writer: str, saved: dict[str, np.ndarray], loaded: dict[str, np.ndarray]
) -> Row:
    names = [n for n in saved if n.startswith(("state.backbone.", "state.head.", "state.momentum."))]
    same = all(n in loaded and np.array_equal(saved[n], loaded[n]) for n in names)
    error = 0.0 if same and names else float("inf")
    return Row(7, "checkpoint: read and written again", dtype, backend, error, 0.0, f"written by {writer}")


def _worst(rows: list[Row]) -> list[Row]:
    worst: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = row.quantity, row.dtype, row.backend
        if key not in worst or not row.error <= worst[key].error:
            worst[key] = row
    return list(worst.values())


@functools.cache
def _data_cases() -> list[Case]:
    """Batches of a generated set and the figures of given embeddings, against those computed here."""
    from data.synthetic import make_synthetic
    from parity_tests import worker

    root = Path(tempfile.mkdtemp(prefix="sface-parity-")) / "synthetic"
    make_synthetic(root, classes=5, images=6, size=32, pairs=10)
    random = np.random.default_rng(3)
    embeddings = random.standard_normal((240, 16)).astype(np.float32)
    embeddings[1::4] = embeddings[::4] + 0.8 * embeddings[1::4]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    inputs = {"kind": "data", "root": str(root), "batch_size": 8, "seed": 4, "image_size": 32, "steps": 6}
    given = _arrays(inputs | {"embeddings": embeddings, "issame": np.arange(120) % 2 == 0})
    truth = worker.answer(None, given)
    names = {"images": "data: batches", "labels": "data: labels", "figures": "evaluation: figures"}
    checks = [Check(row, "data", output, truth[output], np.ones(())) for output, row in names.items()]
    return [Case("data", "float32", given, checks)]


def _relative(quantity: str, tolerance: str, output: str, truth: np.ndarray) -> Check:
    return Check(quantity, tolerance, output, truth, np.abs(truth).max())


def _rounded(array: np.ndarray) -> np.ndarray:
    """Values that float32 holds exactly, so that both dtypes have the same truth."""
    return array.astype(np.float32).astype(np.float64)


def _arrays(values: Mapping[str, object]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}
