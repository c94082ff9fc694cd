import pytest

from common.backend import Backend

BACKEND = Backend("mxnet")


@pytest.fixture(scope="session")
def backend() -> Backend:
    return BACKEND
