"""A failed write changes nothing and leaves no file; all errors of JSON have one form."""

import resource
import signal

import pytest

from common.io.files import atomic_write, read_json, write_json


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


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "file.json"
    value = {"name": "ü", "steps": [1, 2.5, None]}
    write_json(path, value)
    assert read_json(path, "a run") == value
    assert read_json(path, "a run", path.stat().st_size) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b'{"name": "a', "Unterminated string"),
        (b'{"name": "\xff"}', "can't decode byte 0xff"),
        (b"[" * 100_000, "maximum recursion depth"),
        (b"[]", "got list"),
        (b"null", "got NoneType"),
        (b'{"long": "' + bytes(200_000) + b'"}', "of at most 100000 bytes, got 200012"),
    ],
)
def test_other_json_is_refused(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_json(path, "a run", 100_000)
    assert str(caught.value).startswith(f"{path}: expected a run, a JSON object")
    assert message in str(caught.value)


def test_json_that_is_not_there(tmp_path):
    for path in (tmp_path / "file.json", tmp_path):
        with pytest.raises(FileNotFoundError, match="is missing; it should hold a run, a JSON object"):
            read_json(path, "a run")
