"""The suite itself: it passes a backend as it is, and finds each planted mistake at the level where it must show."""

import shutil
from pathlib import Path

import pytest

from common.backend import Backend
from parity_tests import processes, suite
from parity_tests.comparison import Row
from parity_tests.conftest import COVERED
from parity_tests.diagnosis import MISTAKES
from parity_tests.faults import FAULTS, Fault, plant
from parity_tests.setting import Setting
from parity_tests.tests.forks import Forks

ALL = [(backend, fault) for backend in COVERED for fault in FAULTS.get(backend, ())]


pytestmark = pytest.mark.usefixtures("answers_in_forks")


def copied(backend: str, folder: Path) -> Path:
    package = Backend(backend).package
    return shutil.copytree(processes.ROOT / package, folder / package, ignore=shutil.ignore_patterns("tests"))


def rows(backend: str, levels: tuple[int, ...], root: Path) -> list[Row]:
    return suite.run([backend], levels, ("iresnet_small",), quick=True, root=root)


def test_every_backend_that_is_covered_has_faults(backend):
    assert len(FAULTS[backend]) >= 13


def test_a_copy_without_fault_passes(backend, tmp_path):
    copied(backend, tmp_path)
    found = rows(backend, suite.LEVELS, tmp_path)
    assert {row.level for row in found} == set(suite.LEVELS)
    assert [row for row in found if row.status != "passed"] == []


@pytest.mark.parametrize(("backend", "fault"), ALL, ids=[f"{b}-{f.name.replace(' ', '-')}" for b, f in ALL])
def test_a_fault_is_found(backend: str, fault: Fault, tmp_path, monkeypatch):
    # half the cases, in half the time: heads leave entries out in float32 only, and trainers are exact in float64 only
    monkeypatch.setattr(Setting, "dtypes", ("float32",) if fault.level <= 3 else ("float64",))
    plant(copied(backend, tmp_path), fault)
    notes = {row.note for row in rows(backend, (fault.level,), tmp_path) if row.status == "failed"}
    assert notes
    mistake = MISTAKES.get(fault.name.partition(",")[0])
    assert mistake is None or mistake.sentence in notes


def test_an_edit_that_does_not_fit_is_an_error(tmp_path):
    (tmp_path / "file.py").write_text("one two two")
    for old in ("two", "three"):
        with pytest.raises(ValueError, match="expected the old text once"):
            plant(tmp_path, Fault("name", 1, "file.py", old, ""))


@pytest.mark.parametrize(("then", "status"), [("", 0), ("raise ValueError('boom')", 1)])
def test_forks_answer_whatever_a_framework_prints(monkeypatch, tmp_path, then, status):
    package = tmp_path / "loud_impl"
    package.mkdir()
    for file, code in (("__init__", ""), ("runtime", "print('compiling')"), ("adapter", then)):
        (package / f"{file}.py").write_text(code)
    (tmp_path / "in").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    forks = Forks()
    found, errors = forks("loud_impl.adapter", tmp_path / "in", tmp_path / "out", tmp_path)
    forks.close()
    assert found == status
    assert ("boom" in errors) == bool(status)
