"""The suite: it hands cases to the backends and compares their answers with the truth. Levels 7 and 8 are here."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
from parity_tests.comparison import DTYPES, Arrays, Case, Check, Row, as_arrays, read_arrays, relative
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
    """A backend gave no answer. The message ends with what its process printed last."""


def run(
    backends: Sequence[str],
    levels: Iterable[int] = LEVELS,
    backbones: Sequence[str] = BACKBONES,
    *,
    quick: bool = False,
    root: Path = ROOT,
) -> list[Row]:
    """All rows of the table.

    Args:
        backends: names, or dotted names of adapters.
        levels: of `LEVELS`.
        backbones: those of level 4.
        quick: one case of each kind, and short runs; for the tests of the suite itself.
        root: folder of the backends' packages.

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


def describe(backend: str) -> dict[str, Any]:
    """Version, device and threads of a backend.

    Raises:
        BackendFailed: it cannot run.
    """
    answer = ask(backend, {"it": {"kind": np.array("describe")}})["it"]
    return dict(json.loads(str(answer["json"])))


def ask(backend: str, cases: dict[str, Arrays], root: Path = ROOT) -> dict[str, Arrays]:
    """One backend's answers to cases, both by name. It runs in a process of its own: frameworks clash within one.

    Raises:
        BackendFailed: it cannot run, or cannot answer a case.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        source.mkdir()
        for name, inputs in cases.items():
            np.savez(source / f"{name}.npz", **inputs)
        status, errors = in_new_process(backend, source, target, root)
        if status:
            raise BackendFailed(f"{backend}: its process ended with {status}: {errors[-2000:].strip()}")
        return {name: read_arrays(target / f"{name}.npz") for name in cases}


def in_new_process(backend: str, source: Path, target: Path, root: Path) -> tuple[int, str]:
    """Run `parity_tests.worker` in `root`.

    Args:
        backend: name or dotted name; SFACE_PYTHON_<BACKEND> (dots as underscores) may name another interpreter.
        source: folder of cases.
        target: folder of answers; made.
        root: folder of the backends' packages.

    Returns:
        Its exit status and its error output.
    """
    python = os.environ.get(f"SFACE_PYTHON_{backend.upper().replace('.', '_')}", sys.executable)
    command = [python, "-m", "parity_tests.worker", backend, str(source), str(target)]
    environment = os.environ | {
        "PYTHONPATH": f"{root}{os.pathsep}{ROOT}"
    }  # the backend from `root`, all else from here
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def _compare(backend: str, cases: list[Case], answers: dict[str, Arrays], levels: frozenset[int]) -> list[Row]:
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
    """Cases by the process that answers them. Each backbone has its own process, as deep ones fill the memory."""
    if levels & {1, 2, 3}:
        yield head_cases(quick)
    if 4 in levels:
        yield from map(backbone_cases, backbones)
    if 5 in levels:
        yield step_cases()
    if 6 in levels:
        yield trajectory_cases(*(QUICK_STEPS if quick else STEPS))
    if 8 in levels:
        yield _data_cases()


def _checkpoints(backends: Sequence[str], root: Path, dtypes: Sequence[str]) -> list[Row]:
    """Level 7. From each backend on, three train in turn, each from the checkpoint of the one before."""
    rows = []
    for dtype in dtypes:
        inputs = train_inputs(train_config(dtype), 9, 5, RATE)
        truth = true_trajectory(inputs)[0] if dtype == "float64" else None
        for number, first in enumerate(backends):
            order = [backends[(number + i) % len(backends)] for i in range(3)]
            losses, bits = _relay(order, inputs, dtype, root)
            rows += bits
            if truth is not None:
                error = relative("", "trajectory", "losses", truth).error(losses)
                tolerance = TOLERANCES["trajectory"].float64
                name = "checkpoint: A -> B -> C losses"
                rows.append(Row(7, name, dtype, first, error, tolerance, " -> ".join(order)))
    return _worst(rows)


def _relay(order: Sequence[str], inputs: dict[str, Any], dtype: str, root: Path) -> tuple[np.ndarray, list[Row]]:
    """Each backend of `order` trains three steps, from the checkpoint of the one before, and saves one.

    Returns:
        The losses of all steps, and for each checkpoint a row: loaded and saved again, it has the same bits.
    """
    losses: list[np.ndarray] = []
    rows = []
    saved: Arrays = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn, backend in enumerate(order):
            steps = slice(3 * turn, 3 * turn + 3)
            part = {name: inputs[name][steps] for name in ("images", "labels", "learning_rates")}
            asked = {"train": inputs | part | {"save": str(Path(folder) / str(turn))}}
            if turn:
                resume = {"resume": str(Path(folder) / str(turn - 1) / f"step-{3 * turn:08d}")}
                no_steps = {name: array[:0] for name, array in part.items()}
                asked = {"train": asked["train"] | resume, "again": inputs | no_steps | resume}
            answers = ask(backend, {name: as_arrays(case) for name, case in asked.items()}, root)
            if turn:
                rows.append(_same_bits(backend, dtype, order[turn - 1], saved, answers["again"]))
            saved = answers["train"]
            losses.append(saved["losses"])
    return np.concatenate(losses), rows


def _same_bits(backend: str, dtype: str, writer: str, saved: Arrays, loaded: Arrays) -> Row:
    names = [n for n in saved if n.startswith(("state.backbone.", "state.head.", "state.momentum."))]
    same = all(n in loaded and np.array_equal(saved[n], loaded[n]) for n in names)
    error = 0.0 if same and names else float("inf")
    return Row(7, "checkpoint: read and written again", dtype, backend, error, 0.0, f"written by {writer}")


def _worst(rows: list[Row]) -> list[Row]:
    """Of the rows of one quantity, dtype and backend, the one with the largest error; NaN is the largest."""
    worst: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = row.quantity, row.dtype, row.backend
        if key not in worst or not row.error <= worst[key].error:
            worst[key] = row
    return list(worst.values())


@functools.cache
def _data_cases() -> list[Case]:
    """Level 8: batches of a generated set, and figures of given embeddings; the truth is computed in this process."""
    from data.synthetic import make_synthetic
    from parity_tests import worker

    root = Path(tempfile.mkdtemp(prefix="sface-parity-")) / "synthetic"
    make_synthetic(root, classes=5, images=6, size=32, pairs=10)
    random = np.random.default_rng(3)
    embeddings = random.standard_normal((4800, 16)).astype(np.float32)  # enough pairs to measure a FAR of 0.001
    embeddings[1::4] = embeddings[::4] + 0.8 * embeddings[1::4]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    inputs = {"kind": "data", "root": str(root), "batch_size": 8, "seed": 4, "image_size": 32, "steps": 6}
    given = as_arrays(inputs | {"embeddings": embeddings, "issame": np.arange(2400) % 2 == 0})
    truth = worker.answer(None, given)
    names = {"images": "data: batches", "labels": "data: labels", "figures": "evaluation: figures"}
    checks = [Check(row, "data", output, truth[output], 1.0) for output, row in names.items()]
    return [Case("data", "float32", given, checks)]
