"""Portable checkpoints: a folder `step-00001000` of safetensors and JSON, complete or not there at all.

    weights.safetensors    "backbone.*" and "head.*": canonical names and layouts, all that inference needs
    training.safetensors   momentum buffers, random states: all else that an exact resume needs
    state.json             format version, step, best results, and size and SHA-256 of both files

The folder is built under a temporary name, synced and renamed, so that a kill or a full disk at any moment leaves the
older checkpoints as they were. safetensors hold no code; sizes and hashes are checked before anything is used.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from common.io.files import read_json, sync_file, sync_folder, write_json

FORMAT_VERSION = 1
WEIGHTS, TRAINING, STATE = "weights.safetensors", "training.safetensors", "state.json"


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be trusted. The message says which file, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `load_checkpoint` gives back."""

    arrays: dict[str, np.ndarray]
    step: int
    state: dict[str, Any]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, if any."""
    found = checkpoints(folder / "checkpoints")
    return found[-1] if found else None


def check_arrays(expected: Mapping[str, tuple[str, tuple[int, ...]]], arrays: Mapping[str, np.ndarray]) -> None:
    """Check arrays of outside origin against what a network holds, before any of them is copied.

    Args:
        expected: canonical name to dtype name and shape.
        arrays: what came.

    Raises:
        ValueError: a name is missing or unexpected, a shape or dtype differs, a value is NaN or infinite, or a running
            variance is negative; the message names the first few.
    """
    problems = [f"{name}: missing" for name in expected if name not in arrays]
    problems += [f"{name}: unexpected" for name in arrays if name not in expected]
    for name, (dtype, shape) in expected.items():
        if name in arrays:
            problems += _misfits(name, f"{dtype} {shape}", arrays[name])
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"the arrays do not fit, nothing was loaded: {'; '.join(problems[:5])}{more}")


def save_checkpoint(folder: Path, step: int, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> Path:
    """Write `folder/step-<step>` atomically and return it; there must be none of that step yet.

    Args:
        folder: holds all checkpoints of a run.
        step: optimiser steps done.
        arrays: `Trainer.state()`.
        state: JSON values to keep beside it.

    Raises:
        OSError: it cannot be written; what was there before is unharmed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        weights = {name: array for name, array in arrays.items() if _is_weight(name)}
        training = {name: array for name, array in arrays.items() if not _is_weight(name)}
        files = {}
        for name, part in ((WEIGHTS, weights), (TRAINING, training)):
            files[name] = _write_arrays(temporary / name, part)
        write_json(temporary / STATE, {"format": FORMAT_VERSION, "step": step, "files": files, **state})
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        FileNotFoundError: `path` is no checkpoint folder.
        DamagedCheckpoint: a file is missing, cut short, altered, or of another format.
    """
    state = read_state(path)
    arrays: dict[str, np.ndarray] = {}
    for name in (WEIGHTS, TRAINING):
        arrays |= _read_arrays(path / name, state["files"].get(name))
    return Checkpoint(arrays, state["step"], state)


def read_state(path: Path) -> dict[str, Any]:
    """The checked `state.json` of a checkpoint folder; raises as `load_checkpoint`."""
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
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, oldest first."""
    return sorted((path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The step of a checkpoint folder, from its name."""
    return int(path.name.removeprefix("step-"))


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Delete all but the latest `keep` checkpoints and the one of step `best`, and what a kill left half-made."""
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in checkpoints(folder)[:-keep]:
        if step_of(path) != best:
            # renamed first, so that a kill in the middle leaves no half-deleted checkpoint under a real name
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.tmp")))


_ADVICE = "delete this folder to go on from an older checkpoint"


def _is_weight(name: str) -> bool:
    return name.startswith(("backbone.", "head."))


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    except safetensors.SafetensorError as error:  # how the library reports a full disk
        raise OSError(f"{path}: cannot be written ({error})") from error
    sync_file(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _read_arrays(path: Path, expected: Any) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DamagedCheckpoint(f"{path}: missing; {_ADVICE}")
    found = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    if found != expected:
        raise DamagedCheckpoint(f"{path}: expected {expected}, found {found}; {_ADVICE}")
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise DamagedCheckpoint(f"{path}: is not safetensors ({error}); {_ADVICE}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _misfits(name: str, expected: str, array: np.ndarray) -> list[str]:
    found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    if found != expected:
        return [f"{name}: expected {expected}, got {found}"]
    if array.size == 0:
        return []
    smallest, largest = array.min(), array.max()  # NaN comes through; no mask the size of the array
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        return [f"{name}: holds NaN or infinity"]
    if name.endswith("running_var") and smallest < 0:
        return [f"{name}: expected variances, got {smallest}"]
    return []
