"""Two jobs of `--devices` at once."""

import pytest

from common.tests.backend_checks.two_jobs import *  # noqa: F403


@pytest.fixture(autouse=True)
def variables_of_a_job_on_several_hosts(monkeypatch):
    monkeypatch.setenv("DMLC_INTERFACE", "eth0")
    monkeypatch.setenv("DMLC_USE_KUBERNETES", "1")  # the scheduler would listen on all interfaces
