"""The server of a job, of our launcher and by hand."""

import sys

import pytest

from mxnet_impl import launcher

RANK = """
import pathlib, pickle, sys
from mxnet_impl.distributed import join

class Harmful:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(sys.argv[1]),)

group = join()
if group.rank == 0:
    group._store._send_command_to_servers(0, pickle.dumps(Harmful(), 0).decode())  # as MXNet sends an optimiser
assert group.total(1) == 2
"""


@pytest.mark.parametrize("server", [launcher._SERVE, ["-c", "import mxnet_impl"]])
def test_nothing_that_is_sent_is_unpickled(monkeypatch, tmp_path, server):
    monkeypatch.setattr(launcher, "_SERVE", server)
    launcher._run(2, [sys.executable, "-c", RANK, str(tmp_path / "touched")])
    assert not (tmp_path / "touched").exists()
