"""python -m mxnet_impl train RECIPE | evaluate RUN | info (each with --help)."""

import sys

from common.backend import Backend
from common.commands.main import main

if __name__ == "__main__":
    sys.exit(main(Backend("mxnet"), sys.argv[1:]))
