"""Rows that rest, against the dense rule: the same weights and momentum after a thousand steps."""

import numpy as np
import pytest

from common.row_sparse import RowSparseSGD

MOMENTUM, DECAY = 0.9, 5e-4
NUM_ROWS, DIM = 300, 24


def learning_rate(step: int) -> float:
    """A warm-up of 50 steps, and drops after 400 and 700."""
    return 0.1 * min(1, (step + 1) / 50) * 0.1 ** ((step >= 400) + (step >= 700))


def gradient(weight: np.ndarray, rows: np.ndarray, push: np.ndarray) -> np.ndarray:
    """Of a sum of push . w / ||w|| over rows."""
    found = np.zeros_like(weight)
    norms = np.linalg.norm(weight[rows], axis=1, keepdims=True)
    unit = weight[rows] / norms
    found[rows] = (push - (push * unit).sum(1, keepdims=True) * unit) / norms
    return found


def train(dtype: str, num_steps: int, *, dense: bool) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Weights, momentum, and how many rows moved in each step. A tenth of the rows is never pushed, some once only."""
    random = np.random.default_rng(7)
    weight = random.normal(size=(NUM_ROWS, DIM)).astype(dtype)
    buffer = np.zeros_like(weight)
    often = random.permutation(NUM_ROWS)[:20]
    sparse = RowSparseSGD(NUM_ROWS, momentum=MOMENTUM, weight_decay=DECAY)
    moved = []
    for step in range(num_steps):
        seldom = random.integers(20, int(0.9 * NUM_ROWS), size=random.integers(0, 2))
        rows = np.unique(np.concatenate([random.choice(often, 4), seldom]))
        push = random.normal(size=(len(rows), DIM)).astype(dtype)
        g = gradient(weight, rows, push)
        if dense:
            buffer = (MOMENTUM * buffer + (g + DECAY * weight)).astype(dtype)
            weight = (weight - learning_rate(step) * buffer).astype(dtype)
        else:
            sparse.step(weight, buffer, g, learning_rate(step))
            moved.append(sparse.num_moving)
    sparse.catch_up(weight, buffer)
    return weight, buffer, moved


def error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of a row, of its length."""
    return float((np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@pytest.fixture(scope="module")
def truth():
    return train("float64", 1000, dense=True)


@pytest.mark.parametrize("what", [0, 1], ids=["weights", "momentum"])
def test_float64_is_the_dense_rule_to_rounding_over_1000_steps(truth, what):
    found = train("float64", 1000, dense=False)
    assert np.mean(found[2]) < 0.5 * NUM_ROWS, "the test has rows at rest"
    assert error(found[what], truth[what]) < 1e-12


@pytest.mark.parametrize("what", [0, 1], ids=["weights", "momentum"])
def test_float32_is_as_close_to_the_truth_as_the_dense_rule(truth, what):
    dense, found = train("float32", 1000, dense=True), train("float32", 1000, dense=False)
    assert np.mean(found[2]) < 0.5 * NUM_ROWS
    assert error(found[what], truth[what]) < 1.5 * error(dense[what], truth[what])


def test_goes_on_to_the_bit_after_catching_up():
    whole = RowSparseSGD(4, momentum=MOMENTUM, weight_decay=DECAY)
    weight, buffer, nothing = np.eye(4, DIM), np.zeros((4, DIM)), np.zeros((4, DIM))

    def run(sparse, weight, buffer, num_steps):
        for _ in range(num_steps):
            sparse.step(weight, buffer, nothing, 0.1)

    run(whole, weight, buffer, 40)
    assert whole.num_moving == 0
    whole.catch_up(weight, buffer)
    assert whole.num_moving == 4
    resumed, state = RowSparseSGD(4, momentum=MOMENTUM, weight_decay=DECAY), (weight.copy(), buffer.copy())
    run(whole, weight, buffer, 40)
    run(resumed, *state, 40)
    for sparse, arrays in ((whole, (weight, buffer)), (resumed, state)):
        sparse.catch_up(*arrays)
    np.testing.assert_array_equal(weight, state[0])
    np.testing.assert_array_equal(buffer, state[1])


def test_a_row_rests_only_when_it_does_not_turn_any_more():
    sparse = RowSparseSGD(4, momentum=MOMENTUM, weight_decay=DECAY)
    weight = np.eye(4, DIM, dtype=np.float32)
    weight[3] = 0  # has no direction
    buffer = np.zeros_like(weight)
    buffer[1, 9] = 1e-2  # across row 1
    buffer[2, 2] = 1e-2  # along row 2
    nothing = np.zeros_like(weight)
    for _ in range(16):
        sparse.step(weight, buffer, nothing, 0.1)
    assert sparse.num_moving == 2
    before = weight.copy()
    sparse.step(weight, buffer, nothing, 0.1)
    assert (weight != before).any(1).tolist() == [False, True, False, False]
    for _ in range(200):
        sparse.step(weight, buffer, nothing, 0.1)
    assert sparse.num_moving == 1


def test_the_largest_rate_so_far_says_how_far_a_row_may_turn():
    moving = []
    for first_rate in (1e-3, 10):
        sparse = RowSparseSGD(1, momentum=MOMENTUM, weight_decay=DECAY)
        weight, buffer = np.eye(1, DIM, dtype=np.float32), np.zeros((1, DIM), np.float32)
        nothing = np.zeros_like(weight)
        sparse.step(weight, buffer, nothing, first_rate)
        buffer[0, 9] = 1e-5
        for _ in range(15):
            sparse.step(weight, buffer, nothing, 1e-3)
        moving.append(sparse.num_moving)
    assert moving == [0, 1]


def test_a_gradient_that_is_not_a_number_shows():
    sparse = RowSparseSGD(2, momentum=MOMENTUM, weight_decay=DECAY)
    weight, buffer, bad = np.eye(2, DIM), np.zeros((2, DIM)), np.zeros((2, DIM))
    for _ in range(32):
        sparse.step(weight, buffer, bad, 0.1)
    bad[0, 3] = np.nan
    sparse.step(weight, buffer, bad, 0.1)
    assert np.isnan(weight[0]).any()
    assert not np.isnan(weight[1]).any()


def test_very_long_runs_catch_up_by_themselves(monkeypatch):
    monkeypatch.setattr("common.row_sparse._MOST_STEPS", 100)
    truth, found = train("float64", 300, dense=True), train("float64", 300, dense=False)
    assert max(found[2][101:110]) == NUM_ROWS
    assert error(found[0], truth[0]) < 1e-12
