"""Figures and tables as text, for the terminal and for reports; what a user may have meant."""

import difflib
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from common import __version__

NOTHING = "–"
"""Stands for a figure that could not be measured."""


def percent(fraction: float) -> str:
    """Write a fraction in percent; NaN and infinity become NOTHING.

    >>> percent(0.9951)
    '99.51 %'
    """
    return f"{100 * fraction:.2f} %" if math.isfinite(fraction) else NOTHING


def fixed(value: float, digits: int) -> str:
    """Write a number with `digits` decimals; NaN and infinity become NOTHING."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NOTHING


def fraction(option: str, text: str) -> Fraction:
    """Read the value of an option, a number or two with a slash; a ValueError names the option.

    >>> fraction("pixel-scale", "1/127.5")
    Fraction(2, 255)
    """
    try:
        over, _, under = text.partition("/")
        return Fraction(over) / Fraction(under or "1")
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{option}: expected a number such as 0.078125 or 1/127.5, got {text!r}") from None


def printable(text: object) -> str:
    """Text with escapes in place of control characters, which could move the cursor or colour a terminal.

    >>> printable("a\\x1b[2Jb.jpg")
    'a\\\\x1b[2Jb.jpg'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in str(text))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the name that is most like a word, or nothing.

    >>> did_you_mean("lfw_smal", ["orl-demo", "lfw-small"])
    '; did you mean lfw-small?'
    >>> did_you_mean("mnist", ["orl-demo", "lfw-small"])
    ''
    """
    found = difflib.get_close_matches(word.lower().replace("_", "-"), list(known), 1, 0.65)
    return f"; did you mean {found[0]}?" if found else ""


def print_version(arguments: Sequence[str]) -> bool:
    """Whether --version was asked for; prints it."""
    if asked := list(arguments) == ["--version"]:
        print(f"sface {__version__}")
    return asked


def usage(program: str, commands: Mapping[str, tuple[str, str]], asked: str) -> int:
    """Print the commands, each with its line of help; the exit status is 2 unless --help or --version was asked for."""
    if print_version([asked]):
        return 0
    wants_help = asked in ("-h", "--help")
    lines = [] if wants_help else [f"error: expected a command, got {asked!r}{did_you_mean(asked, commands)}"]
    lines += [f"usage: {program} COMMAND [--help]", ""]
    lines += [f"  {name:<10}{summary}" for name, (_, summary) in commands.items()]
    print("\n".join(lines), file=sys.stdout if wants_help else sys.stderr)
    return 0 if wants_help else 2


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a plain-text table: the first column flush left, the others flush right, a rule under the head.

    Args:
        head: names of the columns.
        rows: one text a column each.
    """
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in range(1, len(head)))]).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
