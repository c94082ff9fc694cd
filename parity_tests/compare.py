"""python -m parity_tests.compare A/parity.json B/parity.json: what moved between two runs, row by row."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from common.io import output
from common.io.files import read_json
from parity_tests.report import STATUSES, table

ROUNDING = {"float64": 2.0**-49, "float32": 2.0**-20}  # eight units in the last place of 1; smaller errors are alike
Key = tuple[int, str, str, str]


@dataclass(frozen=True)
class Options:
    """Compare two runs of the suite: what they ran on, and each row that moved."""

    first: tyro.conf.Positional[Path]
    """parity.json of a run, as --out writes it."""
    second: tyro.conf.Positional[Path]
    """parity.json of another run."""
    factor: float = 3.0
    """An error has moved if it is at least so many times larger or smaller, and one of both is above rounding."""


class Found(NamedTuple):
    """A row as the file has it."""

    status: str
    error: float
    tolerance: float

    def __str__(self) -> str:
        numbers = f"{self.error:.1e} / {self.tolerance:.0e} " if math.isfinite(self.error) else ""
        return numbers + self.status


class Run(NamedTuple):
    """What a run ran on, and its rows by level, quantity, dtype and backend."""

    environment: dict[str, str]
    rows: dict[Key, Found]


def read_run(path: Path) -> Run:
    """The parity.json of a run; it may have come from anywhere.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not what the suite writes; names the file.
    """
    what = "what python -m parity_tests --out writes"
    value = read_json(path, what)
    rows, environment = value.get("rows"), value.get("environment")
    if not isinstance(rows, list) or not isinstance(environment, dict):
        raise ValueError(f"{path}: expected {what}, got a file without rows or environment")
    found: dict[Key, Found] = {}
    for number, row in enumerate(rows):
        try:
            key, values = _row(row)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}: expected {what}, got rows[{number}] with {error!r:.200}") from None
        if key in found:
            raise ValueError(f"{path}: expected each row once, got {key[1]!r:.80} of {key[3]!r:.80} twice")
        found[key] = values
    return Run(dict(_facts(environment)), found)


def moved(first: Run, second: Run, factor: float) -> list[list[str]]:
    """A line for each row that changed its status, tolerance or error, or is in one run only."""
    lines = []
    for key in [*first.rows, *(key for key in second.rows if key not in first.rows)]:
        before, after = first.rows.get(key), second.rows.get(key)
        if before is None or after is None or _differ(before, after, key[2], factor):
            lines.append([*map(str, key), *("" if row is None else str(row) for row in (before, after))])
    return lines


def main(arguments: list[str]) -> int:
    """Print what differs; status 2 if a file is not a run's."""
    output.prepare()
    options = tyro.cli(Options, prog="python -m parity_tests.compare", args=arguments)
    try:
        first, second = read_run(options.first), read_run(options.second)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs = [str(options.first), str(options.second)]
    facts = [
        [name, first.environment.get(name, ""), second.environment.get(name, "")]
        for name in {**first.environment, **second.environment}
    ]
    print(table(["", *runs], [fact for fact in facts if fact[1] != fact[2] or fact[0] == "commit"]))
    lines = moved(first, second, options.factor)
    if lines:
        print("\n" + table(["level", "quantity", "dtype", "backend", *runs], lines))
    both = len(first.rows.keys() & second.rows.keys())
    moves = f"{len(lines)} row{'' if len(lines) == 1 else 's'} moved"
    print(f"\n{moves}; {both} {'is' if both == 1 else 'are'} in both runs")
    return 0


def _row(row: Any) -> tuple[Key, Found]:
    """One row.

    Raises:
        KeyError, TypeError, ValueError: it is not a row; says what it has.
    """
    level, status, error, tolerance = (row[name] for name in ("level", "status", "error", "tolerance"))
    texts = [row[name] for name in ("quantity", "dtype", "backend")]
    if level not in range(9) or status not in STATUSES or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"level {level}, status {status}, {texts}")
    return (int(level), texts[0], texts[1], texts[2]), Found(status, float(error), float(tolerance))


def _differ(before: Found, after: Found, dtype: str, factor: float) -> bool:
    if before.status != after.status:
        return True
    if not (math.isfinite(before.error) and math.isfinite(after.error)):
        return str(before) != str(after)
    smaller, larger = sorted(max(error, ROUNDING.get(dtype, 0)) for error in (before.error, after.error))
    return before.tolerance != after.tolerance or larger >= factor * smaller


def _facts(environment: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values; of a backend with its name."""
    for name, value in environment.items():
        if name != "backends":
            yield name, _fact(value)
    backends = environment.get("backends")
    for backend, facts in backends.items() if isinstance(backends, dict) else ():
        for name, value in facts.items() if isinstance(facts, dict) else ():
            yield f"{backend}: {name}", _fact(value)


def _fact(value: Any) -> str:
    return str(value)[:200] if value is None or isinstance(value, str | int | float) else "..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
