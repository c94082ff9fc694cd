"""Two jobs on one host, by the user's command: they take connections from that host alone, and do not meet.

Then one rank of each hangs. The other one waits for it inside of its engine, where Python hears of no signal; it ends
when its launcher, or itself, is told to stop.
"""

import os
import re
import signal
import time
from pathlib import Path

from common.tests.backend_checks.lost_ranks import job, pid_of_rank  # noqa: F401
from common.tests.listening import seen_until
from common.weights.checkpoint import latest_checkpoint

BY_LAUNCHER = "stopped at once; the last checkpoint stands"
BY_ITSELF = "error: told to stop 6 s ago, and still waits for another rank"
IN_JITTOR = "stopped before the ranks could save"  # its launcher looks after both


def test_two_jobs_listen_on_loopback_do_not_meet_and_end_though_a_rank_hangs(job, tmp_path):  # noqa: F811
    jobs = {name: job(out=name, SFACE_STOP_TIMEOUT="4") for name in ("one", "other")}

    def both_have_a_checkpoint() -> bool:
        assert jobs["other"].poll() is None, "the other job ended"
        return all(latest_checkpoint(tmp_path / name) is not None for name in jobs)

    try:
        found = seen_until(both_have_a_checkpoint, jobs["one"])
    except AssertionError as ended:
        raise AssertionError([ended, *(process.said() for process in jobs.values())]) from ended
    assert found, "each engine has a port or more; to see none is to have missed them"
    open_to_all = sorted(listener for listener in found if not listener.is_loopback)
    assert not open_to_all, "\n".join(map(str, open_to_all))

    ranks = [pid_of_rank(jobs[name], rank) for name in ("one", "other") for rank in (0, 1)]
    for hangs in (ranks[1], ranks[3]):
        os.kill(hangs, signal.SIGSTOP)
    time.sleep(2)
    for told in (jobs["one"].pid, ranks[2]):
        os.kill(told, signal.SIGTERM)
    for name, message in (("one", BY_LAUNCHER), ("other", BY_ITSELF)):
        assert jobs[name].wait(60) in (130, 2)
        assert re.search(f"{message}|{IN_JITTOR}", jobs[name].said()), jobs[name].said()
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
