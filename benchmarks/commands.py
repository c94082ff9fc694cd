"""The commands of `python -m benchmarks`, and what they share: options, printing, result files, exit status.

A command's module has `Options` (a dataclass) and `run(options)`. `run` returns a `results.Report`, which is printed
and written, and then the module has `METHOD` too; or it returns an exit status and has done both itself.
"""

import importlib
import sys
from typing import NamedTuple

import tyro

from benchmarks import results
from benchmarks.results import Report
from common.io import output


class Command(NamedTuple):
    """A command. Those with a title have a section on the page of `all`."""

    module: str
    help: str
    title: str = ""
    quick: tuple[str, ...] = ()  # options of a quick run


COMMANDS = {
    "head": Command(
        "benchmarks.head.benchmark",
        "the SFace head beside its plain form, a softmax head and one matrix product",
        "The loss head",
        ("--turns", "3"),
    ),
    "step": Command(
        "benchmarks.step",
        "training in each backend: images/s, first step, cost over the bare framework",
        "A training step",
        ("--turns", "3", "--starts", "1", "--cases", "lfw-small"),
    ),
    "loader": Command(
        "benchmarks.loader",
        "the loader beside MXNet's ImageRecordIter and PyTorch's DataLoader",
        "The loader",
        ("--turns", "3", "--images", "2048", "--large", "50000"),
    ),
    "verify": Command(
        "benchmarks.verify",
        "verification of pairs beside the bare forward passes",
        "Verification",
        ("--turns", "3", "--pairs", "600"),
    ),
    "scale": Command(
        "benchmarks.scale",
        "the head on several ranks, as the number of identities grows",
        "Several ranks",
        ("--turns", "2", "--classes", "20000"),
    ),
    "noise": Command("benchmarks.noise.study", "a study: lfw-small trained with wrong labels, head by head"),
    "all": Command("benchmarks.all", "every benchmark but noise, on one page"),
}


def main(arguments: list[str]) -> int:
    """Run one command; bad input is one line on stderr and status 2."""
    output.prepare()
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        is_help = name in ("-h", "--help")
        print(usage(), file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    module = importlib.import_module(COMMANDS[name].module)
    options = tyro.cli(module.Options, prog=f"python -m benchmarks {name}", args=arguments[1:])
    ran_on = results.machine()
    try:
        done: Report | int = module.run(options)
        if isinstance(done, int):
            return done
        print(done.text)
        if options.out is not None:
            results.write(options.out, name, done, module.METHOD, ran_on)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def usage() -> str:
    lines = [f"  {name:<8}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: python -m benchmarks NAME [--help]", "", *lines])
