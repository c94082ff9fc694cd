"""python -m jittor_impl train RECIPE | evaluate RUN | info (each with --help)."""

import sys

from common.backend import Backend
from common.commands.main import main
from jittor_impl import distributed

COMMANDS = {
    "compile": ("compiling", "Compile Jittor and the operators of a recipe: compile [RECIPE] [--field value ...]"),
}

if __name__ == "__main__":
    distributed.end_with(lambda: main(Backend("jittor"), sys.argv[1:], COMMANDS))
