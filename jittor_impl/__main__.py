"""python -m jittor_impl train RECIPE | evaluate RUN | info (each with --help)."""

import sys

from common.cli import Backend, main
from jittor_impl import distributed

if __name__ == "__main__":
    distributed.end_with(lambda: main(Backend(name="jittor", package="jittor_impl"), sys.argv[1:]))
