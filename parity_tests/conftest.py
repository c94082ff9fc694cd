"""The backends that a test run covers: all, or those named in SFACE_PARITY_BACKENDS. One that cannot run fails."""

import os

import pytest

from common.backend import BACKENDS

COVERED = tuple(os.environ.get("SFACE_PARITY_BACKENDS", ",".join(BACKENDS)).split(","))


def pytest_report_header() -> str:
    left_out = [name for name in BACKENDS if name not in COVERED]
    return f"parity backends: {', '.join(COVERED)}" + (f"; left out: {', '.join(left_out)}" if left_out else "")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames and "fault" not in metafunc.fixturenames:
        metafunc.parametrize("backend", COVERED, scope="module")
