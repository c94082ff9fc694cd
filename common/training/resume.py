"""Which checkpoint a run goes on from: the last one, or where that is damaged the one that --resume-from names."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common import config as configuration
from common.config import RunConfig
from common.weights.checkpoint import STATE, Checkpoint, DamagedCheckpoint, checkpoints, load_checkpoint, step_of


@dataclasses.dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # in training steps, over all starts; without evaluations and checkpoints
    skipped: int = 0  # images that did not decode and were replaced
    best_step: int | None = None
    best_accuracy: float | None = None


class Resumed(NamedTuple):
    """A checkpoint that a run goes on from."""

    saved: Checkpoint
    progress: Progress
    config: RunConfig  # of the run when it was saved
    later: list[Path]  # checkpoints of later steps, the last of which is damaged


def find_checkpoint(folder: Path, named: str | None) -> Resumed | None:
    """Read the checkpoint that a run goes on from; None if it has none.

    Args:
        folder: the run folder.
        named: `RunConfig.resume_from`. It is for a last checkpoint that is damaged; a whole one goes before it, so that
            a command with the option may be given again.

    Raises:
        DamagedCheckpoint: the message names the damaged file, and the last checkpoint before it that is whole.
        ValueError: the run has no such checkpoint as was named.
    """
    found = checkpoints(folder / "checkpoints")
    if not found:
        return None
    place = len(found) - 1
    try:
        return _read(found[place], [])
    except DamagedCheckpoint as damage:
        if named is None:
            raise _with_advice(damage, found) from None
    place = _place(named, found)
    try:
        return _read(found[place], found[place + 1 :])
    except DamagedCheckpoint as damage:
        raise _with_advice(damage, found[: place + 1]) from None


def set_aside(paths: Sequence[Path]) -> list[Path]:
    """Rename checkpoints so that the run can reach their steps again; returns their new paths."""
    moved = []
    for path in paths:
        number, target = 1, path.with_name(f"{path.name}.aside")
        while target.exists():
            number += 1
            target = path.with_name(f"{path.name}.aside{number}")
        moved.append(path.rename(target))
    return moved


def _read(path: Path, later: list[Path]) -> Resumed:
    saved = load_checkpoint(path)
    try:
        progress, config = Progress(**saved.state["progress"]), configuration.from_json(saved.state["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedCheckpoint(f"{path / STATE}: expected progress and config of a run ({error!r})") from None
    return Resumed(saved, progress, config, later)


def _place(named: str, found: list[Path]) -> int:
    """Which of the checkpoints has the step, or the path, that was named."""
    for place, path in enumerate(found):
        if named == str(step_of(path)) or Path(named).resolve() == path.resolve():
            return place
    steps = ", ".join(str(step_of(path)) for path in found)
    raise ValueError(f"--resume-from: expected a checkpoint of this run, step {steps} or its path, got {named!r}")


def _with_advice(damage: DamagedCheckpoint, found: list[Path]) -> DamagedCheckpoint:
    """The error of the last checkpoint of a list, with what to do about it."""
    for path in reversed(found[:-1]):
        try:
            _read(path, [])
        except DamagedCheckpoint:
            continue
        return DamagedCheckpoint(
            f"{damage}; the one before it that is whole is {path}: --resume-from {step_of(path)} goes on from there, "
            "and deletes nothing"
        )
    return DamagedCheckpoint(f"{damage}; no older one is whole: train anew in another folder with --out")
