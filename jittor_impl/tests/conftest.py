import pytest

from common.backend import Backend

BACKEND = Backend("jittor")


@pytest.fixture(scope="session")
def backend() -> Backend:
    return BACKEND
