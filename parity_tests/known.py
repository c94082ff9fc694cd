"""Known failures: a file with a pattern and a reason a line. One that passes is reported: the file must stay true."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from common.io.rows import each_row
from parity_tests.comparison import Row


class Known(NamedTuple):
    """A line of the file."""

    place: str  # file and line, for messages
    pattern: str
    reason: str


def read_known(path: Path) -> list[Known]:
    """The lines `PATTERN # REASON` of a file; empty lines and those that begin with # are comments.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text in UTF-8, or a line has no pattern or no reason.
    """
    found = []
    for number, line in each_row(path, "PATTERN # REASON a line"):
        line = line.strip(' \t,;"')
        pattern, _, reason = (part.strip() for part in line.partition("#"))
        if line.startswith("#"):
            continue
        if not pattern or not reason:
            raise ValueError(f"{path} line {number}: expected PATTERN # REASON, got {line[:80]!r}")
        found.append(Known(f"{path} line {number}", pattern, reason))
    return found


def excuse(rows: Sequence[Row], known: Sequence[Known]) -> tuple[list[Row], list[str]]:
    """The rows, where known failures do not fail and known ones that passed do; and what is wrong with the file."""
    judged = []
    for row in rows:
        line = next((line for line in known if fnmatchcase(row.name, line.pattern)), None)
        if line and row.status == "failed":
            row = row._replace(verdict="known", note=line.reason)
        elif line and row.status == "passed":
            row = row._replace(verdict="failed", note=f"passes, but is known to fail in {line.place}: {line.reason}")
        judged.append(row)
    useless = [line for line in known if not any(fnmatchcase(row.name, line.pattern) for row in rows)]
    return judged, [f"{line.place}: expected a row that matches {line.pattern!r}, found none" for line in useless]
