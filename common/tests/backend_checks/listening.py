"""A job on one host, by the user's command, takes connections from that host alone."""

import signal

from common.tests.backend_checks.lost_ranks import job, wait_for_checkpoint  # noqa: F401
from common.tests.listening import seen_until
from common.weights.checkpoint import latest_checkpoint


def test_a_job_on_one_host_listens_on_loopback_alone(job, tmp_path):  # noqa: F811
    process = job()
    try:
        found = seen_until(lambda: latest_checkpoint(tmp_path / "run") is not None, process)
    except AssertionError as ended:
        raise AssertionError(process.said()) from ended
    assert found, "each engine has a port or more; to see none is to have missed them"
    open_to_all = sorted(listener for listener in found if not listener.is_loopback)
    assert not open_to_all, "\n".join(map(str, open_to_all))


def test_two_jobs_at_once_do_not_meet(job, tmp_path):  # noqa: F811
    names = ("one", "other")
    processes = [job(out=name) for name in names]
    for process, name in zip(processes, names, strict=True):
        wait_for_checkpoint(process, tmp_path / name, 180)
    for process in processes:
        assert process.poll() is None, process.said()
        process.send_signal(signal.SIGTERM)
    for process in processes:
        assert process.wait(60) == 130, process.said()
