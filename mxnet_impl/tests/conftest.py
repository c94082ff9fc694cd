import pytest

from common.cli import Backend

BACKEND = Backend(name="mxnet", package="mxnet_impl")


@pytest.fixture(scope="session")
def backend() -> Backend:
    return BACKEND
