"""python -m common report | tables | compare (each with --help): pages and tables from finished runs."""

import importlib
import sys

COMMANDS = {
    "report": ("run_report", "Write the report of each run, and of several a page that compares them: report RUN ..."),
    "tables": ("tables", "Print the published tables beside runs, a column a backend: tables RUN ..."),
    "compare": ("comparison", "Print a table of runs of several backends and seeds, and draw it: compare RUN ..."),
}


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    command = arguments[0] if arguments else ""
    if command in COMMANDS:
        return importlib.import_module(f"common.reports.{COMMANDS[command][0]}").main(arguments[1:])
    asked_for_help = command in ("-h", "--help")
    lines = [] if asked_for_help else [f"error: expected a command, got {command!r}"]
    lines += ["usage: python -m common COMMAND [--help]", ""]
    lines += [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    print("\n".join(lines), file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
