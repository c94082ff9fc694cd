"""The suite: cases to the backends, their answers, and the rows of the table; levels 7 and 8."""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from parity_tests.cases.backbones import backbone_cases
from parity_tests.cases.heads import head_cases
from parity_tests.cases.trajectories import (
    QUICK_STEPS,
    RATE,
    STEPS,
    step_cases,
    train_config,
    train_inputs,
    trajectory_cases,
    true_trajectory,
)
from parity_tests.comparison import DTYPES, Case, Check, Row, as_arrays
from parity_tests.tolerances import TOLERANCES

ROOT = Path(__file__).parents[1]
LEVELS = (1, 2, 3, 4, 5, 6, 7, 8)
BACKBONES = (
    "iresnet_small",
    *(f"iresnet{depth}" for depth in (18, 34, 50, 100, 152, 200)),
    *(f"{family}{depth}" for family in ("ir", "ir_se") for depth in (50, 101, 152)),
    "mobilefacenet",
)


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
    """The answers of one backend, from a process of its own: frameworks clash within one."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        for name, inputs in cases.items():
            np.savez(source / f"{name}.npz", **inputs)
        status, errors = in_new_process(backend, source, target, root)
        if status:
            raise BackendFailed(f"{backend}: its process ended with {status}: {errors[-2000:].strip()}")
        answers = {}
        for name in cases:
            with np.load(target / f"{name}.npz", allow_pickle=False) as file:
                answers[name] = dict(file)
        return answers


def in_new_process(backend: str, source: Path, target: Path, root: Path) -> tuple[int, str]:
    """Run `parity_tests.worker` and return its exit status and what it printed as errors.

    The interpreter is `SFACE_PYTHON_<BACKEND>` where that is set, else this one.
    """
    done = subprocess.run(
        [
            os.environ.get(f"SFACE_PYTHON_{backend.upper().replace('.', '_')}", sys.executable),
            *("-m", "parity_tests.worker", backend, str(source), str(target)),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


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
        groups.append(lambda: head_cases(quick))
    if 4 in levels:
        groups += [functools.partial(backbone_cases, backbone) for backbone in backbones]
    if 5 in levels:
        groups.append(step_cases)
    if 6 in levels:
        groups.append(lambda: trajectory_cases(*QUICK_STEPS) if quick else trajectory_cases(*STEPS))
    if 8 in levels:
        groups.append(_data_cases)
    for group in groups:
        yield group()


def _checkpoints(backends: Sequence[str], root: Path, dtypes: Sequence[str]) -> list[Row]:
    """Each backend trains and saves, the next goes on from that file, then the one after it; and all that loads and
    saves again gives the same bits."""
    rows = []
    for dtype in dtypes:
        inputs = train_inputs(train_config(dtype), 9, 5, RATE)
        truth = true_trajectory(inputs)[0] if dtype == "float64" else None
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
                    answers = ask(backend, {name: as_arrays(case) for name, case in asked.items()}, root)
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
    given = as_arrays(inputs | {"embeddings": embeddings, "issame": np.arange(120) % 2 == 0})
    truth = worker.answer(None, given)
    names = {"images": "data: batches", "labels": "data: labels", "figures": "evaluation: figures"}
    checks = [Check(row, "data", output, truth[output], np.ones(())) for output, row in names.items()]
    return [Case("data", "float32", given, checks)]
