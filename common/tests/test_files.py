"""A failed write leaves what was there, and nothing else."""

import resource
import signal

import pytest

from common.files import atomic_write, write_json


def test_replaces_only_on_success(tmp_path):
    path = tmp_path / "new folder" / "file.txt"
    with atomic_write(path, "w") as file:
        file.write("old")
    with pytest.raises(RuntimeError), atomic_write(path, "w") as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_full_disk_loses_nothing(tmp_path):
    path = tmp_path / "file.bin"
    write_json(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError), atomic_write(path) as file:
            file.write(bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_text() == '"old"\n'
    assert len(list(tmp_path.iterdir())) == 1


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", float("nan"))
    assert not list(tmp_path.iterdir())
