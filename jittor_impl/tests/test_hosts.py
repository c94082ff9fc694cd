"""Two ranks on two hosts, started by mpirun on the first as docs/many_devices.md says."""

import json
import os
import platform
import subprocess
import sys
from itertools import count
from pathlib import Path

import jittor_utils
import numpy as np

from common.tests import rank_job
from common.tests.hosts import Host, two_hosts
from jittor_impl.tests.conftest import BACKEND
from jittor_impl.tests.test_distributed import CLASSES, ROOT, RUNNING, assert_close, config

STEPS = [0, 3]
SECONDS = 240  # for a job that takes 6, and longer where its operators are not compiled yet

# In place of ssh, which does not bring the caller's environment either.
AGENT = """#!/bin/sh
shift
echo "$*" > {folder}/entered
exec {prefix} unshare --uts env -i HOME="$HOME" PATH=/usr/bin:/bin sh -c "hostname {name}; $*"
"""


def host_name() -> str:
    """Not this host's, as ranks on two hosts of one name do not find each other; but one that shares Jittor's cache.

    The cache has a folder for each host, named by two digits of a hash, and a new one takes minutes to fill.
    """

    def folder(name: str) -> str:
        return jittor_utils.get_str_hash(platform.platform() + name)[:2]

    return next(name for name in map("second{}".format, count()) if folder(name) == folder(platform.node()))


def launch(hosts: tuple[Host, Host], folder: Path) -> None:
    """Run the job in folder/jobs.json."""
    first, second = hosts
    agent = folder / "agent"
    agent.write_text(AGENT.format(folder=folder, prefix=" ".join(second.prefix), name=host_name()))
    agent.chmod(0o755)
    (folder / "hosts").write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    command = [*first.prefix, "mpirun", "--hostfile", "hosts", "-np", "2", "--bind-to", "none"]
    command += ["--timeout", str(SECONDS), "-x", "PATH", "-x", "PYTHONPATH", "-x", "OMP_NUM_THREADS"]
    done = subprocess.run(
        [*command, "python", "-m", "common.tests.rank_job", "jittor", "jobs.json"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "use_mpi"}  # which Jittor set here
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "PRTE_MCA_plm_ssh_agent": str(agent),
            "OMPI_MCA_plm_rsh_agent": str(agent),  # its name in Open MPI 4
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS + 30,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_ranks_on_two_hosts_are_one_that_accumulates(tmp_path):
    jobs = [{"config": config(precision="fp64"), "classes": CLASSES, "steps": STEPS, "out": "out.npz"}]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    with two_hosts() as hosts:
        launch(hosts, tmp_path)
    assert "prted" in (tmp_path / "entered").read_text(), "one rank was on the second host"
    rank_job.run(BACKEND, config(precision="fp64", accumulate=2), CLASSES, STEPS, str(tmp_path / "alone.npz"))
    ranks, alone = (dict(np.load(tmp_path / name)) for name in ("out.npz", "alone.npz"))
    assert_close(ranks, alone, 1e-9, RUNNING)
    assert alone["metrics.loss"].max() > 1
