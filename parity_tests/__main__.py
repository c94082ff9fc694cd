"""python -m parity_tests: do the backends compute the same? One table, exit 1 if not."""

import json
import math
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from common.backend import BACKENDS
from common.io.files import atomic_write, write_json
from parity_tests import suite
from parity_tests.comparison import Row
from parity_tests.suite import BACKBONES, LEVELS, BackendFailed


@dataclass(frozen=True)
class Options:
    """Hold backends against the truth, from the loss to whole training runs, and print a table."""

    backends: str = ",".join(BACKENDS)
    """Names, or dotted names of modules with the worker's functions (docs/parity.md), separated by commas."""
    levels: tuple[int, ...] = LEVELS
    """1 losses, 2 r, 3 gradients, 4 backbones, 5 one step, 6 fifty steps, 7 checkpoints, 8 data and evaluation."""
    backbones: tuple[str, ...] = BACKBONES
    """Of level 4."""
    out: Path | None = None
    """Also write parity.json and parity.md to this folder."""


def markdown(rows: list[Row], backends: list[str]) -> str:
    """The table: a row a quantity, a column a backend, cells error / tolerance."""
    lines = ["| level | quantity | dtype | " + " | ".join(backends) + " |", "|---" * (3 + len(backends)) + "|"]
    cells: dict[tuple[int, str, str], dict[str, str]] = {}
    for row in rows:
        text = "same bits" if row.tolerance == 0 and row.passed else f"{row.error:.1e} / {row.tolerance:.0e}"
        cells.setdefault((row.level, row.quantity, row.dtype), {})[row.backend] = (
            text if row.passed else f"**{text} FAILED** ({row.case})"
        )
    for (level, quantity, dtype), columns in cells.items():
        found = " | ".join(columns.get(backend, "") for backend in backends)
        lines.append(f"| {level} | {quantity} | {dtype} | {found} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m parity_tests", args=arguments)
    backends = [name.strip() for name in options.backends.split(",") if name.strip()]
    unknown = sorted(set(options.backbones) - set(BACKBONES)) + sorted(
        str(n) for n in set(options.levels) - set(LEVELS)
    )
    if unknown or not backends or len(set(backends)) < len(backends):
        wrong = (
            f"unknown {', '.join(unknown)}" if unknown else f"backends {options.backends!r}: expected names, each once"
        )
        print(f"error: {wrong}", file=sys.stderr)
        return 2
    try:
        described = {
            b: json.loads(str(suite.ask(b, {"it": {"kind": np.array("describe")}})["it"]["json"])) for b in backends
        }
        rows = suite.run(backends, options.levels, options.backbones)
    except BackendFailed as error:
        print(
            f"error: {error}\nA backend that cannot run fails the suite; leave it out with --backends.", file=sys.stderr
        )
        return 1
    failed = [row for row in rows if not row.passed]
    left_out = [name for name in BACKENDS if name not in backends]
    facts = [f"- {name}: " + ", ".join(f"{key} {value}" for key, value in d.items()) for name, d in described.items()]
    summary = f"{len(rows) - len(failed)} of {len(rows)} comparisons hold; covered: {', '.join(backends)}"
    summary += f"; left out by name: {', '.join(left_out)}" if left_out else ""
    page = "\n".join([markdown(rows, backends), "", *facts, "", summary])
    print(page)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        with atomic_write(options.out / "parity.md") as file:
            file.write((page + "\n").encode())
        records = [{**row._asdict(), "error": _number(row.error), "passed": row.passed} for row in rows]
        environment = {"python": platform.python_version(), "platform": platform.platform(), "backends": described}
        write_json(options.out / "parity.json", {"environment": environment, "rows": records})
    return 1 if failed else 0


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON knows no infinity


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
