"""How a run fails: errors that say which checkpoint stands, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.io.files import CannotWrite
from common.io.memory import OutOfMemory, lack_of_memory
from common.weights.checkpoint import latest_checkpoint


class Diverged(ArithmeticError):
    """The loss or an array of a checkpoint became infinite or NaN. The message names the step and what to do."""


def diverged(what: str, folder: Path) -> Diverged:
    """The error for a run in `folder`; `what` became infinite or NaN, and at which step."""
    good = latest_checkpoint(folder)
    return Diverged(
        f"{what}; "
        + (f"the last good checkpoint is {good}" if good else "no checkpoint had been saved")
        + "; try a lower learning rate, a warm-up (--optimiser.warmup-steps) or --optimiser.clip-norm"
    )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what writes to a run's folder: an OSError becomes CannotWrite."""
    try:
        yield
    except OSError as error:
        raise cannot_write(error, folder) from error


def cannot_write(error: BaseException | None, folder: Path) -> CannotWrite:
    """The error for a file of a run in `folder`."""
    advice = "make room there, or make it writable, and start the same command again to go on"
    return CannotWrite(f"{error}; {_what_stands(folder)}; {advice}")


@contextmanager
def training(folder: Path) -> Iterator[None]:
    """Around the training of a run: an error that says that memory ran out becomes OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (lack := lack_of_memory(error)) is None:
            raise
        raise OutOfMemory(
            f"out of memory ({lack}); {_what_stands(folder)}; free memory and start the same command again to go on, "
            "or choose another folder (--out) and a smaller --optimiser.batch-size or a larger --optimiser.accumulate"
        ) from error


def _what_stands(folder: Path) -> str:
    last = latest_checkpoint(folder)
    return f"the last checkpoint stands, {last}" if last else "no checkpoint had been saved"
