"""Label noise made on purpose: noise.json and noise.csv beside a training set, written by `python -m data noise`."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.io.files import atomic_write
from common.io.rows import cells, each_row

SUMMARY, CHANGES = "noise.json", "noise.csv"


class Change(NamedTuple):
    """A changed sample."""

    sample: int  # index in the changed set
    label: int
    original_label: int
    original_sample: int  # index in the original set
    outsider: int | None  # index in a set of other people, whose image replaces the original; None: not replaced


class Labels(NamedTuple):
    """Whether each of the M samples of a set is wrong, and its true class."""

    is_wrong: np.ndarray  # (M,) bool
    original: np.ndarray  # (M,) int64: the true class; -1 for a person outside the set


def write_changes(path: Path, changes: Iterable[Change]) -> None:
    """Write noise.csv, atomically."""
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Change._fields)
        writer.writerows(changes)


def read_labels(root: Path, labels: np.ndarray) -> Labels | None:
    """Read noise.csv of a set.

    Args:
        root: folder of the set.
        labels: (M,) int, the labels of the set.

    Returns:
        What is known of each sample; None if there is no noise.csv, so nothing was changed on purpose.

    Raises:
        ValueError: a line is no change of this set; the message gives its number.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> write_changes(root / CHANGES, [Change(sample=1, label=0, original_label=2, original_sample=5, outsider=None)])
    >>> found = read_labels(root, labels=np.array([0, 0, 1]))
    >>> found.is_wrong, found.original
    (array([False,  True, False]), array([0, 2, 1]))
    """
    path = root / CHANGES
    if not path.exists():
        return None
    is_wrong, original = np.zeros(len(labels), bool), labels.astype(np.int64)
    rows = each_row(path, "changed samples")
    if tuple(cells(next(rows, (1, ""))[1])) != Change._fields:
        raise ValueError(f"{path} line 1: expected {','.join(Change._fields)}")
    for number, line in rows:
        row = cells(line)
        if len(row) not in (4, 5) or not all(
            field.isascii() and field.isdecimal() and len(field) < 19 for field in row
        ):
            raise ValueError(f"{path} line {number}: expected five numbers, the last may be empty, got {row[:6]}")
        sample, label, true_label = int(row[0]), int(row[1]), int(row[2])
        if sample >= len(labels) or labels[sample] != label:
            raise ValueError(f"{path} line {number}: sample {sample} with label {label} is not in the set beside it")
        is_wrong[sample] = True
        original[sample] = -1 if len(row) == 5 else true_label
    return Labels(is_wrong, original)
