"""Levels 1 to 3 of the parity suite, and its planted mistakes, for what this package holds."""

import shutil

import pytest

from parity_tests import suite
from parity_tests.faults import FAULTS, plant


def failed(root) -> list[suite.Row]:
    rows = suite.run(["mxnet"], (1, 2, 3), quick=root != suite.ROOT, root=root)
    assert {row.level for row in rows} == {1, 2, 3}
    return [row for row in rows if not row.passed]


def test_losses_weights_and_gradients():
    assert failed(suite.ROOT) == []


@pytest.mark.parametrize("fault", FAULTS["mxnet"], ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_is_found(fault, tmp_path):
    package = tmp_path / "mxnet_impl"
    shutil.copytree(suite.ROOT / "mxnet_impl", package, ignore=shutil.ignore_patterns("tests", "__pycache__"))
    plant(package, fault)
    assert any(row.level == fault.level for row in failed(tmp_path))
