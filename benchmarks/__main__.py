"""python -m benchmarks NAME (with --help); a NAME that is none lists them."""

import sys

from benchmarks import all as everything
from benchmarks import loader, scale, speed, step, verify
from benchmarks.head import benchmark
from benchmarks.noise import study

COMMANDS = {
    "head": benchmark.main,
    "noise": study.main,
    "scale": scale.main,
    "speed": speed.main,
    "step": step.main,
    "loader": loader.main,
    "verify": verify.main,
    "all": everything.main,
}


def main(arguments: list[str]) -> int:
    """Run one benchmark; bad input is one line on stderr and status 2."""
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: python -m benchmarks {' | '.join(COMMANDS)} [--help]", file=sys.stderr)
        return 2
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
