"""python -m data NAME makes a data set; --help lists the names."""

import sys
from collections.abc import Callable
from pathlib import Path

import tyro

from common.io import output
from common.io.text import did_you_mean, print_version, printable
from data.align import make_aligned
from data.convert import convert
from data.lfw import make_lfw_small
from data.noise import make_noise
from data.opencv_sface import make_opencv_sface
from data.orl import make_orl
from data.pairs import make_pairs
from data.split import make_split
from data.synthetic import make_synthetic
from data.synthetic_protocols import make_ijb_synthetic, make_megaface_synthetic

COMMANDS: dict[str, Callable[..., Path]] = {
    "orl": make_orl,
    "lfw": make_lfw_small,
    "convert": convert,
    "align": make_aligned,
    "split": make_split,
    "noise": make_noise,
    "opencv-sface": make_opencv_sface,
    "pairs": make_pairs,
    "synthetic": make_synthetic,
    "ijb-synthetic": make_ijb_synthetic,
    "megaface-synthetic": make_megaface_synthetic,
}


def main(arguments: list[str]) -> int:
    """Run one command. Bad input gives one line on stderr and status 2."""
    output.prepare()
    if print_version(arguments):
        return 0
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        meant = did_you_mean(arguments[0], COMMANDS)
        print(f"error: expected one of {', '.join(COMMANDS)}, got {arguments[0]!a}{meant}", file=sys.stderr)
        return 2
    try:
        written = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="python -m data", args=arguments)
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; all files that were written are complete", file=sys.stderr)
        return 130
    print(f"wrote {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
