"""What a job of `--devices` listens on."""

import pytest

from common.tests.backend_checks.listening import *  # noqa: F403


@pytest.fixture(autouse=True)
def variables_of_a_job_on_several_hosts(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
