"""The fast protocol against a slow one in plain loops, against cases worked out on paper, and on bad input."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from common.evaluation.verification import (
    FAR_THRESHOLDS,
    Roc,
    equal_error_rate,
    false_accepts,
    far_threshold,
    flip_sum_normalise,
    pair_distances,
    verify,
    verify_distances,
)
from common.tests.evaluation.slow_protocol import slow_fold_of, slow_verify

FARS = (1e-1, 1e-2, 1e-3)


def assert_as_slow(result, folds, fars=FARS):
    slow = slow_verify(result.distances.tolist(), result.issame.tolist(), folds, fars)
    for figure in ("accuracy", "std", "threshold", "auc", "eer"):
        assert getattr(result, figure) == pytest.approx(slow[figure], abs=1e-12, nan_ok=True), figure
    assert result.tar == pytest.approx(slow["tar"], abs=1e-12, nan_ok=True)
    assert result.tar_std == pytest.approx(slow["tar_std"], abs=1e-12, nan_ok=True)


# Multiples of 0.01, of 0.001 and arbitrary numbers, so that ties among distances and with thresholds are common.
distance = st.one_of(
    st.integers(0, 400).map(lambda k: k / 100),
    st.integers(990, 1010).map(lambda k: k / 1000),
    st.sampled_from([0.0, 1.0, 4.0]),
    st.floats(0, 4),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_slow_protocol(data):
    folds = data.draw(st.integers(2, 5))
    rows = data.draw(st.lists(st.tuples(distance, st.booleans()), min_size=folds, max_size=22))
    distances, issame = np.array([d for d, _ in rows]), np.array([s for _, s in rows])
    assert_as_slow(verify_distances(distances, issame, folds=folds), folds)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_slow_protocol_on_separable_embeddings(seed):
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(23, 16))
    issame = rng.random(87) < 0.5
    first = rng.integers(0, 23, 87)
    second = np.where(issame, first, (first + 1 + rng.integers(0, 22, 87)) % 23)
    rows = np.stack([first, second], axis=1).ravel()
    raw = people[rows] + 0.7 * rng.normal(size=(174, 16))
    embeddings = flip_sum_normalise(raw, raw + 0.1 * rng.normal(size=raw.shape))
    result = verify(embeddings.astype(np.float32), issame)
    assert 0.7 < result.accuracy < 1
    expected = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(*embeddings[i : i + 2], strict=True)) for i in range(0, 174, 2)
    ]
    assert result.distances == pytest.approx(expected, abs=1e-5)
    assert_as_slow(result, 10)


@pytest.mark.parametrize(("pairs", "folds"), [(10, 10), (11, 10), (19, 10), (6000, 10), (7, 2), (1234, 7)])
def test_folds_are_those_of_sklearn(pairs, folds):
    expected = [len(test) for _, test in KFold(folds, shuffle=False).split(np.zeros(pairs))]
    assert [slow_fold_of(pairs, folds).count(fold) for fold in range(folds)] == expected
    # No threshold accepts 3.995. Each fold starts with one same pair, so its accuracy tells where it starts and ends.
    issame = np.zeros(pairs, bool)
    issame[np.cumsum([0, *expected[:-1]])] = True
    result = verify_distances(np.full(pairs, 3.995), issame, folds=folds)
    assert result.fold_accuracies == pytest.approx([1 - 1 / size for size in expected])


# ---- cases known on paper ----


def few(tar):
    """TAR of pairs that are too few to measure a FAR of 0.01."""
    return pytest.approx(tar | {0.01: math.nan, 0.001: math.nan}, nan_ok=True)


def test_perfect_separation():
    issame = np.tile([True, False], 20)
    result = verify_distances(np.where(issame, 0.5, 1.5), issame)
    assert (result.accuracy, result.std, result.auc, result.eer) == (1, 0, 1, 0)
    assert result.threshold == pytest.approx(0.51)  # the first threshold above 0.5
    assert result.fold_thresholds.tolist() == [0.51] * 10
    assert result.tar == few({0.1: 1})


def test_inverted():
    issame = np.tile([True, False], 20)
    result = verify_distances(np.where(issame, 1.5, 0.5), issame)
    # Accepting nothing and accepting everything are both right for half of the pairs; nothing comes first.
    assert (result.accuracy, result.std, result.threshold, result.auc, result.eer) == (0.5, 0, 0, 0, 1)
    assert result.tar == few({0.1: 0})


def test_all_distances_equal():
    issame = np.tile([True, False], 20)
    result = verify_distances(np.ones(40), issame)
    assert (result.accuracy, result.threshold, result.auc, result.eer) == (0.5, 0, 0.5, 0.5)
    assert result.roc.fpr.tolist() == result.roc.tpr.tolist() == [0, 1]
    # FAR steps from 0 at 1.000 to 1 at 1.001, so every interpolated threshold lies above 1 and accepts all.
    assert result.tar == few({0.1: 1})


def test_a_distance_at_the_threshold_is_different():
    # Folds 1 and 2: same at 0.5, different at 1.0. So 0.50 does not accept their same pairs, and 0.51 is the first
    # that does; it does not accept fold 0's same pair at 0.51.
    result = verify_distances(np.array([0.51, 2, 0.5, 1, 0.5, 1]), np.array([True, False] * 3), folds=3)
    assert result.fold_thresholds[0] == 0.51
    assert result.fold_accuracies.tolist() == [0.5, 1, 1]


def test_std_is_of_the_population():
    # Fold 0 trains on different 0.3, same 0.4: threshold 0, one right; so is 0.41, which comes later. 0 of 2 right.
    # Fold 1 trains on same 0.1, same 0.2: threshold 0.21. Different right, same wrong.
    issame = np.array([True, True, False, True])
    result = verify_distances(np.array([0.1, 0.2, 0.3, 0.4]), issame, folds=2)
    assert result.fold_thresholds.tolist() == [0, 0.21]
    assert result.fold_accuracies.tolist() == [0, 0.5]
    assert (result.accuracy, result.std) == (0.25, 0.25)  # the sample's would be 0.354


def test_one_pair_a_fold():
    distances = np.array([0.1, 0.2, 1.8, 1.9])
    issame = np.array([True, True, False, False])
    result = verify_distances(distances, issame, folds=4, fars=(0.5,))
    # Without 0.1 or 1.9 or 1.8 the threshold is 0.21; without 0.2 it is 0.11, and 0.2 is then refused.
    assert result.fold_thresholds.tolist() == [0.21, 0.11, 0.21, 0.21]
    assert result.fold_accuracies.tolist() == [1, 0, 1, 1]
    assert result.std == pytest.approx(math.sqrt(3) / 4)
    assert result.tar[0.5] == 1  # mean over the two folds with a same pair


# ---- TAR at a FAR ----


def test_far_threshold_lies_on_the_line():
    assert far_threshold(0.05, np.array([0.0, 0.1, 1.0]), np.array([0.0, 1.0, 2.0])) == pytest.approx(0.5)


def test_far_plateau_gives_its_largest_threshold():
    thresholds = np.arange(6.0)
    far = np.array([0.0, 0.1, 0.1, 0.1, 0.5, 0.5])
    assert far_threshold(0.1, far, thresholds) == 3
    assert far_threshold(0.3, far, thresholds) == pytest.approx(3.5)
    assert far_threshold(0.5, far, thresholds) == 5


def test_far_never_reached_gives_threshold_zero():
    assert far_threshold(0.6, np.array([0.0, 0.1, 0.5]), np.arange(3.0)) == 0
    # Different pairs at distance 4 are accepted by no threshold.
    issame = np.tile([True, False], 20)
    result = verify_distances(np.where(issame, 0.0, 4.0), issame)
    assert result.tar == few({0.1: 0})
    assert result.accuracy == 1


def test_plateau_in_a_whole_run():
    # Nine other folds hold 18 different pairs, two of them at 0.3 and the rest at 2: FAR 1/9 from 0.301 to 2.0.
    distances = np.tile([0.9, 2.0, 2.0], 10)
    issame = np.tile([True, False, False], 10)
    distances[[4, 7]] = 0.3
    result = verify_distances(distances, issame, fars=(1 / 9, 0.01))
    # Folds 0, 3 .. 9 see exactly 1/9 and get threshold 2.0; folds 1 and 2 hold one of the 0.3 themselves, see 1/18,
    # and get a threshold beyond 2.0 on the way to 1. All accept 0.9. No fold can measure 0.01.
    assert result.tar == pytest.approx({1 / 9: 1, 0.01: math.nan}, nan_ok=True)


def test_tar_uses_the_fine_grid():
    # Same at 0.5004, different at 0.5006: FAR leaves 0 at 0.501, so a FAR of 0.5 is read at 0.5005.
    issame = np.tile([True, False], 10)
    result = verify_distances(np.where(issame, 0.5004, 0.5006), issame, fars=(0.3, 0.5))
    assert result.tar == {0.3: 0, 0.5: 1}  # thresholds 0.5003 and 0.5005
    assert FAR_THRESHOLDS[[0, 1, -1]].tolist() == [0, 0.001, 3.999]


def test_folds_of_one_kind_do_not_count_for_tar():
    issame = np.array([True] * 5 + [False] * 5)
    result = verify_distances(np.where(issame, 0.5, 1.5), issame, fars=(0.2,))
    assert result.tar == {0.2: 1}
    assert result.accuracy == 1


@pytest.mark.parametrize(("different", "is_measured"), [(111, False), (112, True)])
def test_the_other_folds_must_hold_different_pairs_for_one_false_accept(different, is_measured):
    """Of a FAR of 0.001: the nine other folds hold 999 or 1,008."""
    issame = np.tile([True, *[False] * different], 10)
    result = verify_distances(np.where(issame, 0.5, 1.5), issame, fars=(0.001,))
    assert result.tar == pytest.approx({0.001: 1 if is_measured else math.nan}, nan_ok=True)
    assert math.isnan(result.tar_std[0.001]) != is_measured


@pytest.mark.parametrize(
    ("rate", "comparisons", "allowed"),
    [(0.001, 999, 0), (0.001, 1000, 1), (0.29, 100, 29), (1e-6, 10**6, 1), (1, 5, 5), (0.5, 0, 0)],
)
def test_false_accepts(rate, comparisons, allowed):
    assert false_accepts(rate, comparisons) == allowed


@pytest.mark.parametrize("kind", [True, False])
def test_pairs_of_one_kind_only(kind):
    result = verify_distances(np.linspace(0.1, 1, 20), np.full(20, kind))
    # All same: the last fold's two lie beyond the threshold that the others need. All different: nothing is accepted.
    assert result.accuracy == (0.9 if kind else 1)
    assert all(math.isnan(rate) for rate in (*result.tar.values(), result.auc, result.eer))
    assert result.roc.fpr.size == result.roc.tpr.size == 0


def test_equal_error_rate_between_points():
    assert equal_error_rate(Roc(np.array([0.0, 0.0, 0.5, 1.0]), np.array([0.0, 0.5, 1.0, 1.0]))) == 0.25
    assert equal_error_rate(Roc(np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.8, 1.0]))) == pytest.approx(0.2)


# ---- embeddings ----


def unit_rows(rows, dimensions, seed=0):
    raw = np.random.default_rng(seed).normal(size=(rows, dimensions))
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def test_distances_are_squared_l2_of_neighbouring_rows():
    embeddings = np.array([[1, 0], [0, 1], [1, 0], [-1, 0], [0.6, 0.8], [0.6, 0.8]])
    distances, zeros = pair_distances(embeddings)
    assert distances.tolist() == [2, 4, 0]
    assert zeros == 0


def test_blocks_join_seamlessly():
    embeddings = unit_rows(2 * 2500, 3)
    distances, _ = pair_distances(embeddings)
    assert distances == pytest.approx(((embeddings[::2] - embeddings[1::2]) ** 2).sum(axis=1), abs=1e-14)


def test_rotation_changes_nothing():
    embeddings = unit_rows(400, 8)
    embeddings[1::4] = embeddings[0::4]
    embeddings[1::4, 0] += 0.4
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    issame = np.tile([True, False], 100)
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    plain, rotated = verify(embeddings, issame), verify(embeddings @ rotation, issame)
    assert rotated.distances == pytest.approx(plain.distances, abs=1e-12)
    assert (rotated.accuracy, rotated.std, rotated.threshold) == (plain.accuracy, plain.std, plain.threshold)
    assert rotated.tar == pytest.approx(plain.tar, abs=0, nan_ok=True)
    assert rotated.eer == pytest.approx(plain.eer)


def test_flip_sum_normalise():
    summed = flip_sum_normalise(np.array([[3.0, 0.0], [1e200, 0.0]]), np.array([[0.0, 4.0], [0.0, 1e200]]))
    assert summed == pytest.approx(np.array([[0.6, 0.8], [math.sqrt(0.5), math.sqrt(0.5)]]))
    assert summed.dtype == np.float64
    tiny = np.full((2, 4), 1e-30, np.float32)
    assert flip_sum_normalise(tiny, tiny).tolist() == [[0.5] * 4] * 2
    assert flip_sum_normalise(tiny, tiny).dtype == np.float32


def test_a_zero_sum_stays_zero_and_is_counted():
    raw = np.array([[1.0, 2.0], [3.0, 4.0]])
    embeddings = flip_sum_normalise(np.tile(raw, (2, 1)), np.tile(raw * [[-1], [1]], (2, 1)))
    assert embeddings[0].tolist() == [0, 0]
    result = verify(embeddings, np.array([True, False]), folds=2)
    assert result.distances == pytest.approx([1, 1])
    assert result.zero_embeddings == 2


def test_half_precision_embeddings_pass():
    embeddings = unit_rows(40, 512).astype(np.float16)
    assert verify(embeddings, np.tile([True, False], 10)).distances.dtype == np.float64


# ---- bad input ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, s: (e[:-1], s), r"two embeddings for each pair, got 39"),
        (lambda e, s: (e[:38], s), r"one issame for each pair, got \(20,\) for distances \(19,\)"),
        (lambda e, s: (e[0], s), r"shape \(rows, dimensions\)"),
        (lambda e, s: (e[:0], s[:0]), r"shape \(rows, dimensions\)"),
        (lambda e, s: ((e * 9).astype(int), s), r"float dtype, got int64"),
        (lambda e, s: (e, s.astype(int)), r"issame of dtype bool, got int64"),
        (lambda e, s: (e, s[:, None]), r"got \(20, 1\)"),
        (lambda e, s: (e * np.where(np.arange(40) == 7, 1.002, 1)[:, None], s), r"got norm 1.002 in row 7"),
        (lambda e, s: (e * np.where(np.arange(40) == 9, math.inf, 1)[:, None], s), r"row 9 is not finite"),
        (lambda e, s: (e[:18], s[:9]), r"got 9 pairs for 10 folds"),
    ],
)
def test_bad_input_is_named(change, message):
    embeddings, issame = change(unit_rows(40, 4), np.tile([True, False], 10))
    with pytest.raises(ValueError, match=message):
        verify(embeddings, issame)


def test_a_bad_row_is_named_in_a_later_block():
    embeddings = unit_rows(5000, 3)
    embeddings[4321] *= 2
    with pytest.raises(ValueError, match="norm 2 in row 4321"):
        pair_distances(embeddings)


def test_bad_options_are_named():
    distances, issame = np.ones(20), np.tile([True, False], 10)
    with pytest.raises(ValueError, match="at least 2 folds, got 1"):
        verify_distances(distances, issame, folds=1)
    for fars in ((0.0,), (0.1, 1.5), (math.nan,)):
        with pytest.raises(ValueError, match="rates above 0"):
            verify_distances(distances, issame, fars=fars)
    for wrong in (-0.1, 4.1, math.nan):
        with pytest.raises(ValueError, match="for pair 3"):
            verify_distances(np.where(np.arange(20) == 3, wrong, distances), issame)


def test_bad_flip_sums_are_named():
    with pytest.raises(ValueError, match="one shape"):
        flip_sum_normalise(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match="flipped: row 1 is not finite"):
        flip_sum_normalise(np.ones((2, 3)), np.array([[1.0, 1, 1], [1, math.nan, 1]]))
