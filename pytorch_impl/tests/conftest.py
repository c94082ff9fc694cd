import pytest

from common.cli import Backend

BACKEND = Backend(name="pytorch", package="pytorch_impl")


@pytest.fixture(scope="session")
def backend() -> Backend:
    return BACKEND
