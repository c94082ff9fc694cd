"""python -m jittor_impl train RECIPE | evaluate RUN | info (each with --help)."""

import sys

from common.cli import Backend, main

if __name__ == "__main__":
    sys.exit(main(Backend(name="jittor", package="jittor_impl"), sys.argv[1:]))
