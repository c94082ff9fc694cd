import pytest

from common.backend import Backend

BACKEND = Backend("pytorch")


@pytest.fixture(scope="session")
def backend() -> Backend:
    return BACKEND
