import pytest

from common.cli import Backend

BACKEND = Backend(name="jittor", package="jittor_impl")


@pytest.fixture(scope="session")
def backend() -> Backend:
    return BACKEND
