"""Portable checkpoints: a folder `step-00001000` of safetensors and JSON, which appears whole or not at all.

    weights.safetensors    "backbone.*" and "head.*" by canonical name and layout: all that inference needs
    training.safetensors   momentum buffers and random states: what an exact resume needs besides
    state.json             format version, step, best results, and size and SHA-256 of both files

The folder is built under a temporary name, synced and renamed. A kill or a full disk leaves the older checkpoints
unharmed. None holds NaN or infinity. safetensors hold no code; sizes and hashes are checked before anything is used.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from common.io.files import FileBytes, read_json, sha256_of, sync_file, write_json
from common.weights.foreign.safetensors_file import open_safetensors

FORMAT_VERSION = 1
WEIGHTS, TRAINING, STATE = "weights.safetensors", "training.safetensors", "state.json"


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is missing, altered or unknown. The message names the file and says what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified."""

    arrays: dict[str, np.ndarray]  # `Trainer.state()` by canonical name, in the dtypes and shapes of training
    step: int  # optimiser steps done
    state: dict[str, Any]  # the contents of state.json


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint of a run folder; None if there is none."""
    found = checkpoints(folder / "checkpoints")
    return found[-1] if found else None


def check_arrays(expected: Mapping[str, tuple[str, tuple[int, ...]]], arrays: Mapping[str, np.ndarray]) -> None:
    """Check arrays of outside origin against those of a network, before any of them is copied.

    Args:
        expected: dtype name and shape by canonical name.
        arrays: the arrays to check.

    Raises:
        ValueError: a name is missing or unexpected, a shape or dtype differs, a value is NaN or infinite, or a running
            variance is negative. The message names the first five.

    >>> check_arrays({"fc.bias": ("float32", (2,))}, {"fc.bias": np.zeros(3, np.float32)})
    Traceback (most recent call last):
        ...
    ValueError: the arrays do not fit, nothing was loaded: fc.bias: expected float32 (2,), got float32 (3,)
    """
    problems = [f"{name}: missing" for name in expected if name not in arrays]
    problems += [f"{name}: unexpected" for name in arrays if name not in expected]
    for name, (dtype, shape) in expected.items():
        if name in arrays:
            problems += _misfits(name, f"{dtype} {shape}", arrays[name])
    if problems:
        raise ValueError(f"the arrays do not fit, nothing was loaded: {first_few(problems)}")


def first_few(items: Sequence[str], count: int = 5, separator: str = "; ") -> str:
    """Join the first items for a message, and say how many more there are.

    >>> first_few(["a", "b", "c", "d"], 3, ", ")
    'a, b, c and 1 more'
    """
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return separator.join(items[:count]) + more


def first_not_finite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The name of the first array that holds NaN or infinity; None: there is none."""
    return next((name for name, array in arrays.items() if not _is_finite(array)), None)


def save_checkpoint(folder: Path, step: int, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> Path:
    """Write `folder/step-<step>` atomically and return its path; there must be none of that step yet.

    Args:
        folder: holds all checkpoints of a run.
        step: optimiser steps done.
        arrays: `Trainer.state()`; "backbone.*" and "head.*" go into weights.safetensors.
        state: JSON values for state.json.

    Raises:
        ValueError: an array holds NaN or infinity; nothing was written.
        OSError: it cannot be written, or there is one of that step; older checkpoints are unharmed.

    >>> import tempfile
    >>> arrays = {"backbone.fc.bias": np.zeros(2, np.float32)}
    >>> path = save_checkpoint(Path(tempfile.mkdtemp()), 20, arrays, {"best": None})
    >>> path.name, sorted(file.name for file in path.iterdir())
    ('step-00000020', ['state.json', 'training.safetensors', 'weights.safetensors'])
    >>> loaded = load_checkpoint(path)
    >>> loaded.step, loaded.arrays
    (20, {'backbone.fc.bias': array([0., 0.], dtype=float32)})
    """
    if (bad := first_not_finite(arrays)) is not None:
        raise ValueError(f"{bad} holds NaN or infinity; nothing was saved")
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        files = {}
        for file, wanted in ((WEIGHTS, True), (TRAINING, False)):
            part = {name: array for name, array in arrays.items() if name.startswith(("backbone.", "head.")) == wanted}
            files[file] = _write_arrays(temporary / file, part)
        write_json(temporary / STATE, {"format": FORMAT_VERSION, "step": step, "files": files, **state})
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_file(folder)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        FileNotFoundError: `path` is no checkpoint folder.
        DamagedCheckpoint: a file is missing, cut short, altered, or of another format.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected a checkpoint folder (step-...), found none")
    try:
        state = read_json(path / STATE, "the state of a checkpoint")
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{error}; {_ADVICE}") from None
    if (found := state.get("format")) != FORMAT_VERSION:
        raise DamagedCheckpoint(f"{path / STATE}: expected format {FORMAT_VERSION}, got {found!r}; {_ADVICE}")
    if not isinstance(state.get("step"), int) or not isinstance(state.get("files"), dict):
        raise DamagedCheckpoint(f"{path / STATE}: expected the fields step and files; {_ADVICE}")
    arrays: dict[str, np.ndarray] = {}
    for name in (WEIGHTS, TRAINING):
        arrays |= _read_arrays(path / name, state["files"].get(name))
    return Checkpoint(arrays, state["step"], state)


def checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints in `folder`, oldest first."""
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Read the step of a checkpoint folder from its name."""
    return int(path.name.removeprefix("step-"))


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the latest `keep` checkpoints and the one of step `best`, and unfinished folders."""
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in checkpoints(folder)[:-keep]:
        if step_of(path) != best:
            # renamed first: a kill then leaves no half-deleted checkpoint under a real name
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.tmp")))


_ADVICE = "take an older checkpoint in its place"


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    except safetensors.SafetensorError as error:  # the library reports a full disk so
        raise OSError(f"{path}: cannot be written ({error})") from error
    sync_file(path)
    return _size_and_hash(path)


def _read_arrays(path: Path, expected: Any) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DamagedCheckpoint(f"{path}: missing; {_ADVICE}")
    found = _size_and_hash(path)
    if found != expected:
        raise DamagedCheckpoint(f"{path}: expected {expected}, found {found}; {_ADVICE}")
    try:  # not by the library, which maps the file: the process would die if it shrank
        (group,) = open_safetensors(path, FileBytes(path)).groups
        return {name: array.read() for name, array in group.items()}
    except ValueError as error:
        raise DamagedCheckpoint(f"{error}; {_ADVICE}") from None


def _size_and_hash(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _misfits(name: str, expected: str, array: np.ndarray) -> list[str]:
    found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    if found != expected:
        return [f"{name}: expected {expected}, got {found}"]
    if not _is_finite(array):
        return [f"{name}: holds NaN or infinity"]
    if name.endswith("running_var") and array.size and (smallest := array.min()) < 0:
        return [f"{name}: expected variances, got {smallest}"]
    return []


def _is_finite(array: np.ndarray) -> bool:
    # a NaN becomes both; a mask would take memory
    return array.size == 0 or bool(np.isfinite(np.min(array)) and np.isfinite(np.max(array)))
