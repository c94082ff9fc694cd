"""Two ranks on two hosts, each process started by hand as docs/many_devices.md says."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common import config as configuration
from common.tests import rank_job
from common.tests.backend_checks.trainer import WITHOUT_DROPOUT, configured
from common.tests.hosts import Host, two_hosts
from mxnet_impl.tests.conftest import BACKEND

ROOT = Path(__file__).resolve().parents[2]
CLASSES, STEPS = 7, [0, 3]
SECONDS = 180  # for a job that takes some 8, and much longer where many processes share the cores


def config(**options: int) -> dict:
    return configuration.to_json(configured(precision="fp64", model=WITHOUT_DROPOUT, **options))


class Job:
    """Scheduler, server and rank 0 on the first host, rank 1 on the second; each in a folder of its own."""

    def __init__(self, hosts: tuple[Host, Host], folder: Path) -> None:
        first, second = hosts
        variables = {"DMLC_PS_ROOT_URI": first.address, "DMLC_PS_ROOT_PORT": "9091"}
        self._common = os.environ | variables | {"DMLC_NUM_SERVER": "1", "DMLC_NUM_WORKER": "2"}
        self._folder = folder
        jobs = [{"config": config(), "classes": CLASSES, "steps": STEPS, "out": "out.npz"}]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        helper, worker = ["-c", "import mxnet_impl"], ["-m", "common.tests.rank_job", "mxnet", "../jobs.json"]
        self.processes = {
            "scheduler": self._start("scheduler", first, helper, DMLC_ROLE="scheduler"),
            "server": self._start("server", first, helper, DMLC_ROLE="server"),
            "0": self._start("0", first, worker, DMLC_ROLE="worker", DMLC_RANK="0"),
            "1": self._start("1", second, worker, DMLC_ROLE="worker", DMLC_RANK="1"),
        }

    def _start(self, name: str, host: Host, arguments: list[str], **role: str) -> subprocess.Popen:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        environment = self._common | role | {"DMLC_INTERFACE": host.device, "PYTHONPATH": str(ROOT)}
        with (folder / "output.txt").open("w") as stream:
            return subprocess.Popen(
                [*host.prefix, sys.executable, *arguments], cwd=folder, env=environment, stdout=stream, stderr=stream
            )

    def statuses(self) -> dict[str, int | None]:
        """Once all have ended or one has failed, or it takes too long; then none of them runs any more."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            found = {name: process.poll() for name, process in self.processes.items()}
            if None not in found.values() or any(found.values()):
                break
            time.sleep(0.05)
        for process in self.processes.values():
            process.kill()
            process.wait()
        return found

    def output(self) -> str:
        return "\n".join((self._folder / name / "output.txt").read_text() for name in self.processes)


def test_two_ranks_on_two_hosts_are_one_that_accumulates(tmp_path):
    """Of float64; running statistics are those of both parts on one rank."""
    with two_hosts() as hosts:
        job = Job(hosts, tmp_path)
        found = job.statuses()
    assert found == dict.fromkeys(job.processes, 0), job.output()
    assert not (tmp_path / "1" / "out.npz").exists()
    rank_job.run(BACKEND, config(accumulate=2), CLASSES, STEPS, str(tmp_path / "alone.npz"))
    ranks, alone = (dict(np.load(path)) for path in (tmp_path / "0" / "out.npz", tmp_path / "alone.npz"))
    assert ranks.keys() == alone.keys()
    assert alone["metrics.loss"].max() > 1
    for name, array in alone.items():
        if array.dtype.kind == "f" and ".running_" not in name:
            error = np.abs(ranks[name] - array).max() / max(np.abs(array).max(), 1e-3)
            assert error < 1e-9, (name, error)
