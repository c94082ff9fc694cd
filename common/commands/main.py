"""The command line, the same for every backend: python -m BACKEND COMMAND [--help]; `main` lists the commands."""

import importlib
import sys
from collections.abc import Mapping
from types import MappingProxyType

from common.backend import Backend, how_to_install
from common.io import output
from common.io.files import CannotWrite
from common.io.memory import OutOfMemory, lack_of_memory
from common.io.text import printable, usage
from common.ranks import BAD_INPUT, FAILED, INTERRUPTED, Stopped

COMMANDS = {
    "train": ("train", "Train a recipe, or continue a stopped run: train RECIPE [--field value ...]"),
    "evaluate": (
        "evaluate",
        "Evaluate a run, a checkpoint, an ONNX model or embeddings on verification sets: evaluate SOURCE",
    ),
    "embed": ("embed", "Write the embeddings of a photo or of a folder of images: embed SOURCE IMAGES --out FILE.npz"),
    "compare": ("compare", "Say whether photos show one person: compare SOURCE PHOTO PHOTO ... --detector YUNET.onnx"),
    "identify": (
        "identify",
        "Find who in a folder looks most like a photo: identify SOURCE PHOTO --gallery FOLDER --detector YUNET.onnx",
    ),
    "ijb": ("ijb", "Evaluate on IJB-B or IJB-C, 1:1 and 1:N: ijb SOURCE --root FOLDER --name ijbb | ijbc"),
    "megaface": ("megaface", "Evaluate on MegaFace, up to a million distractors: megaface SOURCE --root FOLDER"),
    "export": (
        "export",
        "Write the backbone of a run or a checkpoint as an ONNX model: export FOLDER --out MODEL.onnx",
    ),
    "import": ("import_weights", "Turn published weights into a checkpoint: import FILE --backbone NAME --out FOLDER"),
    "reproduce": (
        "reproduce",
        "Train and evaluate a published row, or say what is missing: reproduce ROW [--check] [--field value ...]; "
        "opencv-sface is evaluated only",
    ),
    "info": (
        "info",
        "Print versions, device, threads, backbones and recipes, and the command that installs what is missing",
    ),
}
"""The module of this package that has `run(backend, arguments)`, and a line of help, by what the user types."""
TRAINING = ("train", "reproduce")  # they go on when nobody reads what they print


def main(backend: Backend, arguments: list[str], own: Mapping[str, tuple[str, str]] = MappingProxyType({})) -> int:
    """Run one command; returns the exit status. Bad input is one line on stderr and status 2, no traceback.

    Too little memory or a disk that takes no more is a line and status 1.

    Args:
        backend: whose package the user named.
        arguments: of the command line.
        own: commands of that package alone, as in COMMANDS.
    """
    command = arguments[0] if arguments else ""
    output.prepare(goes_on=command in TRAINING)
    if command not in COMMANDS and command not in own:
        return usage(f"python -m {backend.package}", COMMANDS | dict(own), command)
    try:  # a command's module is imported only now: what it needs may be missing
        if command in own:
            module = backend.module(own[command][0])
        else:
            module = importlib.import_module(f"{__package__}.{COMMANDS[command][0]}")
        return module.run(backend, arguments[1:])
    except ModuleNotFoundError as error:
        print(printable(f"error: {error}") + f"; {how_to_install(backend.name)}", file=sys.stderr)
    except CannotWrite as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if (lack := lack_of_memory(error)) is None:
            raise
        option = "--optimiser.batch-size" if command in TRAINING else "--batch-size, where the command has it"
        advice = error if isinstance(error, OutOfMemory) else f"out of memory ({lack}); try a smaller {option}"
        print(printable(f"error: {advice}"), file=sys.stderr)
        return FAILED
    except (ValueError, ArithmeticError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("stopped at once; the last checkpoint stands", file=sys.stderr)
        return INTERRUPTED
    return BAD_INPUT
