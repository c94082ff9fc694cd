"""Records of a run: log.jsonl, which the reports read; the same numbers for TensorBoard; and environment.json."""

import json
import platform
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.io.files import atomic_write, read_regular
from common.io.machine import git_revision

LOG = "log.jsonl"
NEGATIVE_LOSS = (
    "SFace: a negative loss is normal. intra_loss = -mean(r_intra cos θ) falls while samples move towards their "
    "prototypes. It rises towards 0 when their angles fall below a, where the pull r_intra vanishes. inter_loss is "
    "positive or negative by the sign of cos θ."
)


class RunLog:
    """Appends records to `folder/log.jsonl` and their numbers to TensorBoard.

    Args:
        folder: the run folder, which exists.
        step: where the run starts or resumes. Records of later steps are dropped, as the resumed run writes them again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / LOG
        if path.exists():
            records = [record for record in read_log(path) if record["step"] <= step]
            with atomic_write(path, "w") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
        self._file = path.open("a", encoding="utf-8")
        from tensorboard.summary import Writer  # only here: those who read a log do without

        self._tensorboard = Writer(str(folder / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        """Append a record (`kind`, `step` and finite numbers) and flush it."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        prefix = f"{record['kind']}/{record['set']}" if "set" in record else record["kind"]
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._tensorboard.add_scalar(f"{prefix}/{name}", value, record["step"])

    def close(self) -> None:
        for file in (self._file, self._tensorboard):
            with suppress(OSError):  # what could be written is written, and `write` has said what could not
                file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log, oldest first. An unfinished last line, which a kill can leave, is ignored.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: a finished line is not a record; names its number.
    """
    lines = read_regular(path).split(b"\n")
    lines.pop()  # empty, or unfinished
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number}: is not JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int) or "kind" not in record:
            raise ValueError(f"{path} line {number}: expected a record with kind and step, got {line[:80]!r}")
        records.append(record)
    return records


def environment(backend: dict[str, Any]) -> dict[str, Any]:
    """Versions, machine, git revision and command line of a run; `backend` is `Trainer.describe()`."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git": git_revision(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "scikit-learn": metadata.version("scikit-learn"),
        "backend": backend,
    }
