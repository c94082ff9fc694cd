"""Level 7: a checkpoint that one backend writes, another resumes and saves, a third resumes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.cases.trajectories import RATE, train_config, train_inputs, true_trajectory
from parity_tests.comparison import Arrays, Row, as_arrays, relative, why_missing
from parity_tests.processes import ask
from parity_tests.setting import DEFAULT, Setting
from parity_tests.tolerances import TOLERANCES

LOSSES, BITS = "checkpoint: A -> B -> C losses", "checkpoint: read and written again"
LEG = 3  # steps that each trains


def checkpoint_rows(
    backends: Sequence[str], root: Path, dtypes: Sequence[str], setting: Setting = DEFAULT
) -> list[Row]:
    """From each backend on, three train in turn, each from the checkpoint of the one before.

    A backend that cannot train from the start takes no part, and has a row that says why.
    """
    rows = []
    for dtype in dtypes:
        inputs = train_inputs(train_config(dtype), 3 * LEG, 5, RATE) | setting.given(dtype)
        truth = true_trajectory(inputs)[0] if dtype == "float64" else None
        with tempfile.TemporaryDirectory() as folder:
            firsts = {name: _first_leg(name, inputs, Path(folder), root) for name in backends}
            able = [name for name in backends if "losses" in firsts[name]]
            for name in (name for name in backends if name not in able):
                rows.append(Row(7, BITS, dtype, name, np.inf, 0.0, "its first steps", **why_missing(firsts[name], "")))
            for number, first in enumerate(able):
                order = [able[(number + i) % len(able)] for i in range(3)]
                losses, bits = _relay(order, firsts[first], inputs, dtype, Path(folder), root)
                rows += bits
                if truth is not None:
                    error = relative("", "trajectory", "losses", truth).error(losses)
                    tolerance = TOLERANCES["trajectory"].float64
                    rows.append(Row(7, LOSSES, dtype, first, error, tolerance, " -> ".join(order)))
    return rows


def _first_leg(backend: str, inputs: dict[str, Any], folder: Path, root: Path) -> Arrays:
    case = inputs | _steps(inputs, 0) | {"save": str(folder / f"{backend}-0")}
    return ask(backend, {"train": as_arrays(case)}, root)["train"]


def _relay(
    order: Sequence[str], saved: Arrays, inputs: dict[str, Any], dtype: str, folder: Path, root: Path
) -> tuple[np.ndarray, list[Row]]:
    """The later backends of `order` train three steps each, from the checkpoint of the one before, and save one.

    Returns:
        The losses of all steps, and for each checkpoint a row: loaded and saved again, it has the same bits.
    """
    losses, rows = [saved["losses"]], []
    for turn, backend in enumerate(order[1:], 1):
        resume = {"resume": str(folder / f"{order[0]}-{turn - 1}" / f"step-{LEG * turn:08d}")}
        asked = {
            "train": inputs | resume | _steps(inputs, turn) | {"save": str(folder / f"{order[0]}-{turn}")},
            "again": inputs | resume | {name: array[:0] for name, array in _steps(inputs, turn).items()},
        }
        answers = ask(backend, {name: as_arrays(case) for name, case in asked.items()}, root)
        rows.append(_same_bits(backend, dtype, order[turn - 1], saved, answers["again"]))
        saved = answers["train"]
        if "losses" not in saved:
            rows.append(Row(7, BITS, dtype, backend, np.inf, 0.0, "its next steps", **why_missing(saved, "losses")))
            break
        losses.append(saved["losses"])
    return np.concatenate(losses), rows


def _steps(inputs: dict[str, Any], turn: int) -> dict[str, Any]:
    return {name: inputs[name][LEG * turn : LEG * turn + LEG] for name in ("images", "labels", "learning_rates")}


def _same_bits(backend: str, dtype: str, writer: str, saved: Arrays, loaded: Arrays) -> Row:
    names = [n for n in saved if n.startswith(("state.backbone.", "state.head.", "state.momentum."))]
    same = all(n in loaded and np.array_equal(saved[n], loaded[n]) for n in names)
    error = 0.0 if same and names else float("inf")
    why = {} if "losses" in loaded else why_missing(loaded, "losses")
    return Row(7, BITS, dtype, backend, error, 0.0, f"written by {writer}", **why)
