"""Identification among distractors against the same in plain loops, cases worked out on paper, memory, bad input."""

import math
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.protocols import distractors
from common.protocols.distractors import search_among_distractors
from common.protocols.identification import UNMEASURED


def slow_search(probes, subjects, strangers, max_rank, fars):
    """Every search by itself: probe j looks for photo i of its person among all strangers."""
    mates, ranks = [], []
    for j, probe in enumerate(probes):
        for i, photo in enumerate(probes):
            if i != j and subjects[i] == subjects[j]:
                own = sum(a * b for a, b in zip(probe, photo, strict=True))
                others = [sum(a * b for a, b in zip(probe, row, strict=True)) for row in strangers]
                mates.append(own)
                ranks.append(1 + sum(other >= own for other in others))
    everything = [sum(a * b for a, b in zip(probe, row, strict=True)) for probe in probes for row in strangers]
    cmc = [sum(rank <= k for rank in ranks) / len(ranks) if ranks else math.nan for k in range(1, max_rank + 1)]
    tar = {}
    for far in fars if ranks else ():
        if Fraction(str(far)) * len(everything) < 1:
            tar[far] = UNMEASURED
            continue
        # the lowest threshold that lets at most this share of strangers through
        thresholds = [t for t in [-math.inf, *everything] if sum(s > t for s in everything) <= far * len(everything)]
        threshold = min(thresholds)
        false = sum(s > threshold for s in everything) / len(everything)
        tar[far] = (sum(mate > threshold for mate in mates) / len(mates), false, threshold)
    return cmc, tar, len(mates)


def in_blocks(rows, cuts):
    return np.split(np.asarray(rows, float), sorted(cuts))


def assert_as_slow(probes, subjects, strangers, max_rank=3, fars=(0.125, 0.25, 0.5, 1.0), cuts=()):
    result = search_among_distractors(
        np.array(probes, float), np.array(subjects), in_blocks(strangers, cuts), len(strangers),
        max_rank=max_rank, fars=fars,
    )  # fmt: skip
    cmc, tar, mates = slow_search(probes, subjects, strangers, max_rank, fars)
    assert result.cmc.tolist() == pytest.approx(cmc, abs=1e-12, nan_ok=True)
    assert result.tar == {far: pytest.approx(point, abs=1e-12, nan_ok=True) for far, point in tar.items()}
    assert (result.mates, result.probes, result.distractors) == (mates, len(probes), len(strangers))
    assert result.subjects == len(set(subjects))
    assert result.lone_probes == sum(subjects.count(subject) == 1 for subject in subjects)
    return result


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_equals_the_slow_one(data):
    """Small whole numbers, exact in float32: ties of all kinds; blocks cut anywhere."""
    row = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    probes = data.draw(st.lists(row, min_size=1, max_size=8))
    subjects = data.draw(st.lists(st.sampled_from("abc"), min_size=len(probes), max_size=len(probes)))
    strangers = data.draw(st.lists(row, min_size=1, max_size=20))
    cuts = data.draw(st.lists(st.integers(0, len(strangers)), max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distractors, "PROBES_AT_ONCE", data.draw(st.integers(1, 5)))
        patch.setattr(distractors, "DISTRACTORS_AT_ONCE", data.draw(st.integers(1, 7)))
        assert_as_slow(probes, subjects, strangers, data.draw(st.integers(1, 25)), cuts=cuts)


def test_equals_the_slow_one_on_a_larger_set(monkeypatch):
    monkeypatch.setattr(distractors, "PROBES_AT_ONCE", 7)
    monkeypatch.setattr(distractors, "DISTRACTORS_AT_ONCE", 33)
    random = np.random.default_rng(0)
    people = random.integers(-4, 5, (5, 6))
    subjects = random.integers(0, 5, 22).tolist()
    probes = (people[subjects] + random.integers(-2, 3, (22, 6))).tolist()
    strangers = random.integers(-4, 5, (150, 6)).tolist()
    result = assert_as_slow(probes, subjects, strangers, 20, (0.001, 0.01, 0.1), cuts=(1, 90))
    assert 0.3 < result.rank(1) < result.rank(10) < 1  # a case that tells them apart
    assert result.tar[0.001].rate < result.tar[0.01].rate < result.tar[0.1].rate


def test_equals_all_scores_at_once_over_many_blocks(monkeypatch):
    """Late blocks have few scores that still count, and those of some probes only."""
    monkeypatch.setattr(distractors, "DISTRACTORS_AT_ONCE", 64)
    random = np.random.default_rng(4)
    probes, subjects = random.integers(-9, 10, (40, 8)).astype(float), np.arange(40) % 10
    probes += 2 * np.repeat(random.integers(-9, 10, (1, 8)), 40, axis=0)
    strangers = random.integers(-20, 21, (5000, 8)).astype(float)
    result = search_among_distractors(probes, subjects, [strangers], 5000, max_rank=200)
    own, scores = probes @ probes.T, probes @ strangers.T
    ranks = [
        1 + np.sum(scores[j] >= own[j, i])
        for j in range(40)
        for i in range(40)
        if i != j and subjects[i] == subjects[j]
    ]
    assert result.cmc.tolist() == [np.mean(np.array(ranks) <= k) for k in range(1, 201)]
    assert len(set(result.cmc)) > 30  # a curve that rises all the way


def test_by_hand():
    """Photos 0 and 1 of a have the score 6; 2, of b, is alone."""
    probes = np.array([[1, 2, 0], [2, 2, 0], [0, 0, 1]], float)
    strangers = np.array([[-1, 4, 0], [-2, 4, 0], [0, 0, 5]], float)
    assert (probes @ strangers.T).tolist() == [[7, 6, 0], [6, 4, 0], [0, 0, 5]]
    result = search_among_distractors(probes, np.array(["a", "a", "b"]), [strangers], 3, max_rank=4, fars=(0.1, 0.3, 1))
    # photo 0: two strangers reach 6, rank 3; photo 1: one stranger reaches 6, rank 2
    assert result.cmc.tolist() == [0, 0.5, 1, 1]
    assert result.tar[0.1] is UNMEASURED  # 0 of 9 strangers may pass
    assert result.tar[0.3] == (0, 1 / 9, 6)  # 2 of 9 may, but the second and the third are tied
    assert result.tar[1.0] == (1, 1, -math.inf)
    assert (result.lone_probes, result.subjects, result.mates) == (1, 2, 2)


def test_without_mates():
    result = search_among_distractors(np.eye(2), np.array([1, 2]), [np.eye(2)], 2, max_rank=2)
    assert np.isnan(result.cmc).all()
    assert result.tar == {}
    assert result.lone_probes == 2


def test_a_rate_means_its_decimal_digits():
    """0.29 of 100 strangers are 29, though 0.29 * 100 is 28.999999999999996."""
    strangers = np.arange(100.0)[:, None]
    result = search_among_distractors(np.array([[1.0], [1.0]]), np.array([0, 0]), [strangers], 100, fars=(0.29,))
    assert result.tar[0.29].false_rate == 58 / 200
    assert result.tar[0.29].threshold == 70


def test_memory_does_not_grow_with_the_distractors():
    random = np.random.default_rng(1)
    probes, subjects = random.normal(size=(200, 8)), np.arange(200) // 4

    def blocks(count):
        return (random.normal(size=(10_000, 8)) for _ in range(count // 10_000))

    peaks = []
    for count in (50_000, 400_000):
        tracemalloc.start()
        search_among_distractors(probes, subjects, blocks(count), count, max_rank=100)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e6 < 60e6  # all scores together are 320 MB


def test_results_do_not_depend_on_blocks(monkeypatch):
    random = np.random.default_rng(2)
    probes, subjects = random.normal(size=(30, 16)), np.arange(30) // 3
    strangers = random.normal(size=(500, 16))
    whole = search_among_distractors(probes, subjects, [strangers], 500, fars=(0.01,))
    monkeypatch.setattr(distractors, "DISTRACTORS_AT_ONCE", 64)
    parts = search_among_distractors(probes, subjects, np.split(strangers, [3, 3, 400]), 500, fars=(0.01,))
    assert np.array_equal(whole.cmc, parts.cmc)
    assert whole.tar[0.01] == pytest.approx(parts.tar[0.01], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": np.empty((0, 2)), "subjects": np.empty(0)}, "expected probes"),
        ({"subjects": np.array([1])}, "a subject for each of 2 rows"),
        ({"probes": np.array([[0, 1], [np.nan, 0]])}, "probes: row 1 is not finite"),
        ({"distractors": [np.eye(2), np.array([[1, 2], [np.inf, 0]])], "count": 4}, "distractor 3 .* is not finite"),
        ({"distractors": [np.ones((2, 3))]}, r"shape \(n, 2\), as the probes, got \(2, 3\)"),
        ({"distractors": [np.ones(2)]}, r"got \(2,\)"),
        ({"distractors": [], "count": 2}, "expected 2 distractors, got 0"),
        ({"count": 3}, "expected 3 distractors, got 2"),
        ({"count": 1}, "expected 1 distractors, got more"),
        ({"count": 0}, "at least one distractor"),
        ({"max_rank": 0}, "at least one distractor and one rank"),
        ({"fars": (0.0,)}, "above 0"),
        ({"fars": (2,)}, "at most 1"),
        ({"count": 10**10, "fars": (1e-6, 1e-2)}, "rates of at most 0.0004 for 20000000000 comparisons, got 0.01"),
    ],
)
def test_bad_input(change, message):
    good = {"probes": np.eye(2), "subjects": np.array([1, 1]), "distractors": [np.eye(2)], "count": 2}
    search_among_distractors(**good)
    with pytest.raises(ValueError, match=message):
        search_among_distractors(**(good | change))
