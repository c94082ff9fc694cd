"""python -m parity_tests: compare backends with the float64 truth; print a table, exit 1 on a difference."""

import math
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.backend import BACKENDS
from common.io.files import atomic_write, write_json
from parity_tests import suite
from parity_tests.comparison import Row
from parity_tests.suite import BACKBONES, LEVELS, BackendFailed


@dataclass(frozen=True)
class Options:
    """Compare backends with the float64 truth, from the loss to whole training runs, and print a table."""

    backends: str = ",".join(BACKENDS)
    """Names, separated by commas; a name with a dot is a module with an adapter's functions (docs/parity.md)."""
    levels: tuple[int, ...] = LEVELS
    """1 losses, 2 r, 3 gradients, 4 backbones, 5 one step, 6 fifty steps, 7 checkpoints, 8 data and evaluation."""
    backbones: tuple[str, ...] = BACKBONES
    """Backbones of level 4."""
    out: Path | None = None
    """Also write parity.json and parity.md to this folder."""


def markdown(rows: list[Row], backends: list[str]) -> str:
    """The table: a row a quantity, a column a backend; a cell is error / tolerance."""
    lines = ["| level | quantity | dtype | " + " | ".join(backends) + " |", "|---" * (3 + len(backends)) + "|"]
    cells: dict[tuple[int, str, str], dict[str, str]] = {}
    for row in rows:
        text = "same bits" if row.tolerance == 0 and row.passed else f"{row.error:.1e} / {row.tolerance:.0e}"
        if not row.passed:
            text = f"**{text} FAILED** ({row.case})"
        cells.setdefault((row.level, row.quantity, row.dtype), {})[row.backend] = text
    for (level, quantity, dtype), columns in cells.items():
        found = " | ".join(columns.get(backend, "") for backend in backends)
        lines.append(f"| {level} | {quantity} | {dtype} | {found} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    options = tyro.cli(Options, prog="python -m parity_tests", args=arguments)
    backends = [name.strip() for name in options.backends.split(",") if name.strip()]
    try:
        _check(options, backends)
        described = {backend: suite.describe(backend) for backend in backends}
        rows = suite.run(backends, options.levels, options.backbones)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BackendFailed as error:
        print(f"error: {error}\nTo leave a backend out, name the others with --backends.", file=sys.stderr)
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


def _check(options: Options, backends: list[str]) -> None:
    if not backends or len(set(backends)) < len(backends):
        raise ValueError(f"backends: expected names, each once, got {options.backends!r}")
    for name, given, known in (("levels", options.levels, LEVELS), ("backbones", options.backbones, BACKBONES)):
        unknown = [value for value in given if value not in known]
        if unknown:
            raise ValueError(f"{name}: expected some of {', '.join(map(str, known))}, got {unknown[0]}")


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no infinity


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
