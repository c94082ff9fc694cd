"""Tests of several ranks need mpirun."""

import pytest

from jittor_impl import launcher


def skip_without() -> None:
    """Skip the module that calls it where there is no mpirun."""
    try:
        launcher._mpirun(2)
    except FileNotFoundError as missing:
        pytest.skip(str(missing), allow_module_level=True)
