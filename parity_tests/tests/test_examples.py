"""The examples of docs/parity.md hold at levels 1 to 3; what they do not provide is named and fails nothing."""

from importlib.util import find_spec

import pytest

from parity_tests import suite

PLAIN = {"sface plain", "sface plain, edges", "sface"}


def rows(example: str) -> list[suite.Row]:
    described, failed = suite.start([example])
    assert described[example]["version"]
    return failed + suite.run([example], (1, 2, 3))


def heads(rows: list[suite.Row], status: str) -> set[str]:
    return {row.quantity.partition(":")[0] for row in rows if row.status == status}


def test_numpy_has_one_form_and_no_other_head():
    found = rows("examples.numpy_parity")
    assert [row for row in found if row.status == "failed"] == []
    assert heads(found, "passed") == PLAIN
    assert {row.note for row in found if row.quantity.startswith("sface streamed:")} == {"form"}
    assert {row.note for row in found if row.quantity.startswith("sface plain, weighted")} == {
        "reduction, sample_weight"
    }
    assert {row.note for row in found if row.quantity.startswith("arcface")} == {"margin_head"}


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_pytorch_answers_both_forms_and_all_options():
    found = rows("examples.pytorch_parity")
    assert [row for row in found if row.status == "failed"] == []
    streamed = {head.replace("plain", "streamed") for head in PLAIN}
    weighted = {"sface plain, weighted", "sface streamed, weighted"}
    assert heads(found, "passed") == PLAIN | streamed | weighted
