"""python -m parity_tests: compare backends with the float64 truth; print a table, exit 1 on a difference."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.backend import BACKENDS
from common.io import output
from common.io.files import atomic_write, write_json
from common.io.text import print_version
from parity_tests import report, suite
from parity_tests.comparison import Row
from parity_tests.known import Known, excuse, read_known
from parity_tests.setting import DEFAULT, PRECISIONS, Setting
from parity_tests.suite import BACKBONES, LEVELS


@dataclass(frozen=True)
class Options:
    """Compare backends with the float64 truth, from the loss to whole training runs, and print a table."""

    backends: str = ",".join(BACKENDS)
    """Names, separated by commas; any other name is that of a module with an adapter's functions (docs/parity.md)."""
    levels: tuple[int, ...] = LEVELS
    """1 losses, 2 r, 3 gradients, 4 backbones, 5 one step, 6 fifty steps, 7 checkpoints, 8 data and evaluation."""
    backbones: tuple[str, ...] = BACKBONES
    """Backbones of level 4."""
    device: str = DEFAULT.device
    """cpu, cuda or cuda:N."""
    precision: str = DEFAULT.precision
    """fp32, or that of the backbone: bf16, fp16 or tf32. Losses, r and their gradients are computed in float32."""
    known: Path | None = None
    """A file of known failures, PATTERN # REASON a line; PATTERN matches "BACKEND QUANTITY DTYPE", with * and ?."""
    out: Path | None = None
    """Also write parity.json and parity.md to this folder."""
    junit: Path | None = None
    """Also write this file in JUnit's format, which CI shows."""
    list: bool = False
    """Print the tolerances of the levels, with reasons and measured errors, and start nothing."""


def main(arguments: list[str]) -> int:
    output.prepare()
    if print_version(arguments):
        return 0
    options = tyro.cli(Options, prog="python -m parity_tests", args=arguments)
    setting = Setting(options.device, options.precision)
    backends = [name.strip() for name in options.backends.split(",") if name.strip()]
    try:
        _check(options, backends)
        known = read_known(options.known) if options.known else []
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        print(report.tolerances(options.levels, setting))
        return 0
    described, rows = suite.start(backends, setting=setting)
    rows += suite.run(list(described), options.levels, options.backbones, setting=setting)
    rows, complaints = _judge(rows, known, list(described))
    facts = [f"- {name}: " + ", ".join(f"{key} {value}" for key, value in d.items()) for name, d in described.items()]
    left_out = [name for name in BACKENDS if name not in backends] if set(BACKENDS) & set(backends) else []
    summary = f"{report.summary(rows)}; covered: {', '.join(backends)}"
    summary += f"; left out by name: {', '.join(left_out)}" if left_out else ""
    page = "\n".join(
        [
            report.title(setting),
            "",
            report.markdown(rows, backends),
            *report.details(rows),
            "",
            *facts,
            "",
            summary,
            *complaints,
        ]
    )
    print(page)
    if options.out is not None:
        with atomic_write(options.out / "parity.md") as file:
            file.write((page + "\n").encode())
        write_json(options.out / "parity.json", report.record(rows, described, setting))
    if options.junit is not None:
        with atomic_write(options.junit) as file:
            file.write(report.junit(rows))
    return 1 if complaints or any(row.status == "failed" for row in rows) else 0


def _judge(rows: list[Row], known: list[Known], backends: list[str]) -> tuple[list[Row], list[str]]:
    """The rows with known failures marked, and further reasons to fail."""
    rows, useless = excuse(rows, known)
    compared = {row.backend for row in rows if row.status != "not provided"}
    silent = "expected a function of docs/parity.md that these levels ask for, found none"
    complaints = useless + [f"{name}: {silent}" for name in backends if name not in compared]
    if any(row.level == suite.START and row.status == "failed" for row in rows):
        complaints.append("a backend cannot start; to leave it out, name the others with --backends")
    if not compared and not complaints:
        complaints.append("expected a comparison, got none: the rows say why")
    return rows, [f"error: {complaint}" for complaint in complaints]


def _check(options: Options, backends: list[str]) -> None:
    if not backends or len(set(backends)) < len(backends):
        raise ValueError(f"backends: expected names, each once, got {options.backends!r}")
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", options.device):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {options.device!r}")
    if options.precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {options.precision!r}")
    for name, given, known in (("levels", options.levels, LEVELS), ("backbones", options.backbones, BACKBONES)):
        unknown = [value for value in given if value not in known]
        if unknown:
            raise ValueError(f"{name}: expected some of {', '.join(map(str, known))}, got {unknown[0]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
