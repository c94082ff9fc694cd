"""What a job of `--devices` listens on."""

import pytest

from common.tests.backend_checks.listening import *  # noqa: F403
from jittor_impl import distributed

try:
    distributed._mpirun(2)
except FileNotFoundError as missing:
    pytest.skip(str(missing), allow_module_level=True)


@pytest.fixture(autouse=True)
def variables_of_a_job_on_several_hosts(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_btl", "self,tcp")
