import pytest

from parity_tests import processes
from parity_tests.tests.forks import Forks


@pytest.fixture(scope="session")
def forks():
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def answers_in_forks(forks, monkeypatch):
    """Backends answer in forks, not in processes of their own; faster, where the process is not what is tested."""
    monkeypatch.setattr(processes, "in_new_process", forks)
