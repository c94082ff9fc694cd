"""Two jobs on one host, by the user's command: they take connections from that host alone, and do not meet."""

import signal

from common.tests.backend_checks.lost_ranks import job  # noqa: F401
from common.tests.listening import seen_until
from common.weights.checkpoint import latest_checkpoint


def test_two_jobs_at_once_listen_on_loopback_alone_and_do_not_meet(job, tmp_path):  # noqa: F811
    jobs = {name: job(out=name) for name in ("one", "other")}

    def both_have_a_checkpoint() -> bool:
        assert jobs["other"].poll() is None, "the other job ended"
        return all(latest_checkpoint(tmp_path / name) is not None for name in jobs)

    try:
        found = seen_until(both_have_a_checkpoint, jobs["one"])
    except AssertionError as ended:
        raise AssertionError(*(process.said() for process in jobs.values())) from ended
    assert found, "each engine has a port or more; to see none is to have missed them"
    open_to_all = sorted(listener for listener in found if not listener.is_loopback)
    assert not open_to_all, "\n".join(map(str, open_to_all))
    for process in jobs.values():
        process.send_signal(signal.SIGTERM)
    for process in jobs.values():
        assert process.wait(60) == 130, process.said()
