"""Level 7 with backends that cannot train, or stop on the way."""

import numpy as np
import pytest

from parity_tests import relay
from parity_tests.comparison import ERROR, NOT_PROVIDED
from parity_tests.processes import ROOT
from parity_tests.relay import BITS, LOSSES, checkpoint_rows


@pytest.fixture
def rows(monkeypatch):
    """Rows by backend, quantity and case, where `answers` has what a backend says at its first and its later legs."""
    truth = np.arange(9.0)
    monkeypatch.setattr(relay, "true_trajectory", lambda _: (truth, {}, {}))

    def of(backends, answers):
        def ask(backend, cases, _root):
            later = "resume" in cases["train"]
            turn = int(str(cases["train"]["save"])[-1])
            trained = {"losses": truth[3 * turn : 3 * turn + 3], "state.head.w": np.ones(1) * turn}
            right = {"train": trained, "again": {**trained, "state.head.w": np.ones(1) * (turn - 1)}}
            wrong = answers.get((backend, later))
            return {name: wrong or right[name] for name in cases}

        monkeypatch.setattr(relay, "ask", ask)
        return checkpoint_rows(backends, ROOT, ["float64"])

    return of


def test_all_hold(rows):
    found = rows(["a", "b"], {})
    assert {row.status for row in found} == {"passed"}
    assert {row.case for row in found if row.quantity == LOSSES} == {"a -> b -> a", "b -> a -> b"}


@pytest.mark.parametrize(
    ("answer", "status"),
    [({NOT_PROVIDED: np.array("create_trainer")}, "not provided"), ({ERROR: np.array("boom")}, "failed")],
)
def test_a_backend_that_cannot_train_takes_no_part(rows, answer, status):
    found = rows(["a", "b"], {("b", False): answer})
    (own,) = [row for row in found if row.backend == "b"]
    assert (own.quantity, own.status, own.note) == (BITS, status, str(next(iter(answer.values()))))
    assert {row.status for row in found if row.backend == "a"} == {"passed"}
    assert {row.case for row in found if row.quantity == LOSSES} == {"a -> a -> a"}


def test_a_backend_that_stops_on_the_way_fails_with_its_words(rows):
    found = rows(["a", "b"], {("b", True): {ERROR: np.array("boom")}})
    failed = [row for row in found if row.status == "failed"]
    assert {(row.backend, row.note) for row in failed if row.quantity == BITS} == {("b", "boom")}
    assert {(row.backend, row.case) for row in failed if row.quantity == LOSSES} == {
        ("a", "a -> b -> a"),
        ("b", "b -> a -> b"),
    }


def test_other_bits_and_other_losses_fail(rows):
    other = {"losses": np.zeros(3), "state.head.w": np.full(1, 7.0)}
    found = rows(["a", "b"], {("b", True): other})
    assert {row.quantity for row in found if row.status == "failed"} == {BITS, LOSSES}
