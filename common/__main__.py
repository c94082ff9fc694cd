"""python -m common report | tables | compare (each with --help): pages and tables from finished runs."""

import importlib
import sys

from common.io import output
from common.io.text import printable, usage

COMMANDS = {
    "report": ("run_report", "Write the report of each run, and a page that compares several runs: report RUN ..."),
    "tables": (
        "tables",
        "Print finished runs beside published figures, with a column for each backend: tables RUN ...",
    ),
    "compare": ("comparison", "Print a table of finished runs by backend and seed, and draw it: compare RUN ..."),
}


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status. Bad input is one line on stderr and status 2, without a traceback."""
    output.prepare()
    command = arguments[0] if arguments else ""
    if command not in COMMANDS:
        return usage("python -m common", COMMANDS, command)
    try:
        importlib.import_module(f"{__package__}.reports.{COMMANDS[command][0]}").main(arguments[1:])
    except (OSError, ValueError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
