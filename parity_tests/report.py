"""What a run found: the table, and the same as JSON and as JUnit's XML."""

import math
import platform
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from common.io.machine import git_revision, processor
from parity_tests.comparison import Row
from parity_tests.setting import DEFAULT, Setting
from parity_tests.tolerances import TOLERANCES, Tolerance

STATUSES = ("passed", "failed", "known", "not provided")


def title(setting: Setting) -> str:
    """Where the backends computed; the line above the table."""
    return f"Device {setting.device}, precision {setting.precision}."


def markdown(rows: Sequence[Row], backends: Sequence[str]) -> str:
    """The table: a row a quantity, a column a backend; a cell is error / tolerance.

    Quantities that no backend provides, for the same reasons, share a line.
    """
    cells: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((str(row.level), row.quantity, row.dtype), {})[row.backend] = row
    lines: list[list[str]] = []
    lacking: dict[tuple[str, ...], list[tuple[str, str, str]]] = {}
    for quantity, columns in cells.items():
        texts = [_cell(columns[backend]) if backend in columns else "" for backend in backends]
        if all(row.status == "not provided" for row in columns.values()):
            lacking.setdefault(tuple(texts), []).append(quantity)
        else:
            lines.append([*quantity, *texts])
    for reasons, quantities in lacking.items():
        levels, names, dtypes = (list(dict.fromkeys(part)) for part in zip(*quantities, strict=True))
        heads = dict.fromkeys(name.partition(":")[0] for name in names)
        lines.append([", ".join(levels), "; ".join(heads), ", ".join(dtypes), *reasons])
    return table(["level", "quantity", "dtype", *backends], lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of any texts."""
    escaped = [[_printable(text).replace("|", "\\|") for text in line] for line in (head, *lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (escaped[0], ["---"] * len(head), *escaped[1:]))


def details(rows: Sequence[Row]) -> list[str]:
    """Lines: the notes of failed rows that are longer than one, each once, with the first row that it is of."""
    firsts: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.status == "failed" and "\n" in row.note:
            firsts.setdefault((row.backend, row.note), row)
    lines = []
    for row in firsts.values():
        later = row.note.splitlines()[1:]
        lines += ["", f"{row.name} ({row.case}):", "", *(f"    {_printable(line)}" for line in later)]
    return lines


def summary(rows: Sequence[Row]) -> str:
    """How many comparisons hold, and what became of the others."""
    count = {status: sum(row.status == status for row in rows) for status in STATUSES}
    compared = len(rows) - count["not provided"]
    words = {"failed": "failed", "known": "known to fail", "not provided": "not provided"}
    others = [f"{count[status]} {text}" for status, text in words.items() if count[status]]
    return "; ".join([f"{count['passed']} of {compared} comparisons hold", *others])


def tolerances(levels: Sequence[int], setting: Setting = DEFAULT) -> str:
    """The tolerances of some levels as a table, each with its reason and the largest error that was measured."""
    lines = [
        [str(t.level), name, *(text for dtype in setting.dtypes for text in _bounds(t, dtype, setting)), t.why(setting)]
        for name, t in TOLERANCES.items()
        if t.level in levels
    ]
    columns = [column for dtype in setting.dtypes for column in (dtype, "measured")]
    return f"{title(setting)}\n\n{table(['level', 'errors of', *columns, 'why'], lines)}"


def record(rows: Sequence[Row], described: Mapping[str, Any], setting: Setting = DEFAULT) -> dict[str, Any]:
    """JSON values: the rows, the machine, versions and commits. `parity_tests.compare` reads them."""
    environment = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": git_revision(),
        "commit of this folder": git_revision(Path.cwd()),
        "processor": processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **setting._asdict(),
        "backends": dict(described),
    }
    records = [
        {**row._asdict(), "error": _number(row.error), "tolerance": _number(row.tolerance), "status": row.status}
        for row in rows
    ]
    return {"environment": environment, "rows": records}


def junit(rows: Sequence[Row]) -> bytes:
    """JUnit's XML: a suite a backend, a test case a row."""
    root = ElementTree.Element("testsuites", name="parity")
    for backend in dict.fromkeys(row.backend for row in rows):
        own = [row for row in rows if row.backend == backend]
        failures = sum(row.status == "failed" for row in own)
        skipped = sum(row.status in ("known", "not provided") for row in own)
        counts = {"tests": str(len(own)), "failures": str(failures), "errors": "0", "skipped": str(skipped)}
        suite = ElementTree.SubElement(root, "testsuite", {"name": backend, **counts})
        for row in own:
            name = f"{row.quantity} {row.dtype}".strip()
            case = ElementTree.SubElement(suite, "testcase", classname=f"{backend}.level {row.level}", name=name)
            if row.status != "passed":
                kind = "failure" if row.status == "failed" else "skipped"
                found = ElementTree.SubElement(case, kind, message=_printable(_cell(row).replace("**", "")))
                found.text = "\n".join(map(_printable, row.note.splitlines()))
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _cell(row: Row) -> str:
    note = row.note.partition("\n")[0]
    if row.status == "not provided":
        return f"not provided: {note}"
    text = f"{row.error:.1e} / {row.tolerance:.0e}"
    if row.tolerance == 0:
        text = "same bits" if row.error == 0 else "other bits"
    if row.status == "failed":
        numbers = f"{text} " if math.isfinite(row.error) else ""
        return f"**{numbers}FAILED** ({row.case})" + (f", {note}" if note else "")
    return f"{text}, known to fail: {note}" if row.status == "known" else text


def _bounds(tolerance: Tolerance, dtype: str, setting: Setting) -> list[str]:
    """A tolerance, and the largest error that was measured."""
    bound, measured = tolerance.of(dtype, setting), tolerance.measured_at(dtype, setting)
    return ["same bits", ""] if bound == 0 else [f"{bound:.0e}", f"{measured:.1e}" if measured else "not measured"]


def _printable(text: str) -> str:
    """Text without characters that move a cursor or that XML does not allow."""
    return re.sub(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no infinity
