"""One run a folder: it has one writer, and a run that goes on has the configuration, data and schedule of its start."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common import config as configuration
from common.config import OptimiserConfig, RunConfig
from common.io.files import read_json
from common.ranks import Ranks
from common.training.schedule import scheduled_rate, total_steps


def refuse_another_run(folder: Path, config: RunConfig) -> None:
    """Raise a ValueError if the folder holds a run of another configuration; names the fields that differ."""
    path = folder / "config.json"
    if path.exists():
        before = read_json(path, "the settings of a run")
        before = configuration.to_json(configuration.from_json(before))  # with defaults of fields that are newer
        free = configuration.FREE_ON_RESUME | configuration.LENGTH
        changed = configuration.differences(before, configuration.to_json(config), free)
        if changed:
            raise ValueError(
                f"{folder} holds a run of another configuration ({'; '.join(changed)}); "
                "choose another folder with --out, or delete this one"
            )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with this process however that ends; a ValueError says who else holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{folder}: {file.read(200).strip() or 'another process'} trains in it; stop that run first, or choose "
                "another folder with --out"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):  # as on a disk that became read-only
                path.unlink(missing_ok=True)
                folder.rmdir()  # if nothing was written


def compare_data_of_ranks(data: dict[str, Any], root: Path, ranks: Ranks) -> None:
    """Raise a ValueError if this rank has other data than the ranks have on average.

    Args:
        data: "images", how many, and "fingerprint", of the training set.
        root: the set's folder.
        ranks: all of them call this.
    """
    for number in (data["images"], int(hashlib.sha256(str(data).encode()).hexdigest()[:7], 16)):
        if ranks.total(number) != number * ranks.count:
            raise ValueError(
                f"{root}: rank {ranks.rank} found {data['images']} images ({data['fingerprint']}), which others did "
                "not; expected the same set on each host"
            )


def check_data(before: Any, now: dict[str, Any], folder: Path, root: Path) -> None:
    """Raise a ValueError if the run began with another set. Keys and labels of two kinds cannot be compared.

    Args:
        before: `now` as a checkpoint of the run holds it.
        now: "images", how many, and "fingerprint", of the training set.
        folder: of the run.
        root: the set's folder.
    """
    if not isinstance(before, dict):
        return  # a checkpoint of before these were kept
    (kind, _), (kind_now, _) = (str(data.get("fingerprint")).partition(" ")[::2] for data in (before, now))
    if before.get("images") != now["images"] or (kind == kind_now and before != now):
        raise ValueError(
            f"{folder}: the run began with {before.get('images')} images ({before.get('fingerprint')}), but {root} "
            f"holds {now['images']} ({now['fingerprint']}); name its own set again with --data.root, or another "
            "folder with --out"
        )


def check_schedule(
    before: OptimiserConfig, now: OptimiserConfig, taken: int, steps_per_epoch: int, folder: Path
) -> None:
    """Raise a ValueError unless every step that was `taken` would be the same with the number of steps of now."""
    if (before.epochs, before.max_steps) == (now.epochs, now.max_steps):
        return
    what = f"with optimiser.epochs {now.epochs} and optimiser.max_steps {now.max_steps}"
    if (total := total_steps(now, steps_per_epoch)) < taken:
        raise ValueError(
            f"{folder}: {what} the run has {total} steps, but {taken} were taken; expected at least these, or another "
            "folder (--out)"
        )
    for step in range(taken):
        old, new = (scheduled_rate(step, optimiser, steps_per_epoch) for optimiser in (before, now))
        if old != new:
            raise ValueError(
                f"{folder}: {what} the learning rate of step {step + 1}, which was taken, would have been {new:g} "
                f"instead of {old:g}; choose another folder (--out)"
            )
