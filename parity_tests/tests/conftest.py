import pytest

from parity_tests.tests.forks import Forks


@pytest.fixture(scope="session")
def forks():
    forks = Forks()
    yield forks
    forks.close()
