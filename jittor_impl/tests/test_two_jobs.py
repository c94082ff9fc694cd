"""Two jobs of `--devices` at once."""

import pytest

from common.tests.backend_checks.two_jobs import *  # noqa: F403
from jittor_impl.tests import mpirun

mpirun.skip_without()


@pytest.fixture(autouse=True)
def variables_of_a_job_on_several_hosts(monkeypatch):
    monkeypatch.setenv("OMPI_MCA_btl", "self,tcp")
