"""The command line, the same for every backend: python -m BACKEND COMMAND [--help]; `main` lists the commands."""

import sys
from collections.abc import Callable

from common.backend import Backend
from common.ranks import BAD_INPUT, INTERRUPTED, Stopped


def main(backend: Backend, arguments: list[str]) -> int:
    """Run one command; returns the exit status. Bad input is one line on stderr and status 2, no traceback."""
    commands: dict[str, Callable[[Backend, list[str]], int]] = {
        "train": train,
        "evaluate": evaluate,
        "embed": embed,
        "ijb": ijb,
        "megaface": megaface,
        "export": export,
        "import": import_weights,
        "reproduce": reproduce,
        "info": info,
    }
    command = arguments[0] if arguments else ""
    if command not in commands:
        asked_for_help = command in ("-h", "--help")
        lines = [] if asked_for_help else [f"error: expected a command, got {command!r}"]
        lines += [f"usage: python -m {backend.package} COMMAND [--help]", ""]
        lines += [f"  {name:<10}{(function.__doc__ or '').splitlines()[0]}" for name, function in commands.items()]
        print("\n".join(lines), file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    try:
        return commands[command](backend, arguments[1:])
    except ModuleNotFoundError as error:
        print(f"error: {error}; python -m {backend.package} info says how to install it", file=sys.stderr)
    except (ValueError, ArithmeticError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint stands", file=sys.stderr)
        return INTERRUPTED
    return BAD_INPUT


def train(backend: Backend, arguments: list[str]) -> int:
    """Train a recipe, or go on with a run that stopped: train RECIPE [--field value ...]"""
    from common.commands import train as command

    try:
        command.train(backend, arguments)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    return 0


def evaluate(backend: Backend, arguments: list[str]) -> int:
    """Evaluate a run, a checkpoint, an ONNX model or embeddings on verification sets: evaluate SOURCE [--help]"""
    from common.commands import evaluate

    return 0 if evaluate.evaluate(backend, arguments) else 1


def embed(backend: Backend, arguments: list[str]) -> int:
    """Write the embeddings of a folder of images: embed SOURCE FOLDER --out FILE.npz"""
    from common.commands import evaluate

    evaluate.embed(backend, arguments)
    return 0


def export(backend: Backend, arguments: list[str]) -> int:
    """Write the backbone of a run or a checkpoint as an ONNX model: export FOLDER --out MODEL.onnx"""
    from common.commands import export

    export.export(backend, arguments)
    return 0


def import_weights(backend: Backend, arguments: list[str]) -> int:
    """Turn published weights into a checkpoint: import FILE --backbone NAME --out FOLDER"""
    from common.commands import export

    export.import_weights(backend, arguments)
    return 0


def reproduce(backend: Backend, arguments: list[str]) -> int:
    """Train and evaluate a published row, or say what is missing: reproduce ROW [--check] [--field value ...]"""
    from common.commands.reproduce import reproduce as run

    try:
        return 0 if run(backend, arguments) else 1
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED


def ijb(backend: Backend, arguments: list[str]) -> int:
    """Evaluate on IJB-B or IJB-C, 1:1 and 1:N: ijb SOURCE --root FOLDER --name ijbb | ijbc"""
    from common.commands import ijb

    return 0 if ijb.ijb(backend, arguments) else 1


def megaface(backend: Backend, arguments: list[str]) -> int:
    """Evaluate on MegaFace, up to a million distractors: megaface SOURCE --root FOLDER"""
    from common.commands import ijb

    ijb.megaface(backend, arguments)
    return 0


def info(backend: Backend, arguments: list[str]) -> int:
    """Print versions, device, threads, backbones, recipes, and what is missing with the command that installs it"""
    from common.commands.info import describe

    page, complete = describe(backend.name)
    print(page)
    if not complete:
        return 1
    from common.recipes import RECIPES

    runtime = backend.module("runtime")
    print()
    for name, value in runtime.describe(runtime.resolve_device("auto")).items():
        print(f"  {name:<24} {value}")
    print(f"\nBackbones: {', '.join(backend.module('backbones').BACKBONES)}")
    print(f"Recipes:   {', '.join(RECIPES)}")
    return 0
