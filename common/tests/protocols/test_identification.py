"""1:1 and 1:N against the same in plain loops, against cases worked out on paper, and on bad input."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.protocols import identification
from common.protocols.identification import UNMEASURED, Largest, OperatingPoint, compare, pair_scores, search

FARS = (0.01, 0.1, 0.25, 0.5, 1.0)


# ---- 1:1 ----


def slow_points(scores, issame):
    """(FAR, TAR, threshold) of each different score, highest first, without points inside a straight run."""
    counts = [(0, 0, math.inf)]
    for threshold in sorted(set(scores), reverse=True):
        accepted = [same for score, same in zip(scores, issame, strict=True) if score >= threshold]
        counts.append((accepted.count(False), accepted.count(True), threshold))
    corners = counts[:2]  # the first score's point is always kept, even where it lies on the line from (0, 0)
    for before, point, after in zip(counts[1:], counts[2:], counts[3:], strict=False):
        step_to = point[0] - before[0], point[1] - before[1]
        step_from = after[0] - point[0], after[1] - point[1]
        if step_to != step_from:
            corners.append(point)
    corners += counts[-1:] if len(counts) > 2 else []
    different, same = issame.count(False), issame.count(True)
    return [(false / different, true / same, threshold) for false, true, threshold in corners]


def allowed(rate, comparisons):
    """How many false accepts a rate allows."""
    return math.floor(Fraction(str(rate)) * comparisons)


def slow_compare(scores, issame, far):
    if allowed(far, issame.count(False)) == 0:
        return UNMEASURED
    best = None
    for point in slow_points(scores, issame)[::-1]:  # from the largest FAR down; equally near ones: the first
        if best is None or abs(point[0] - far) < abs(best[0] - far):
            best = point
    return OperatingPoint(best[1], best[0], best[2])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6).map(lambda k: k / 4), st.booleans()), min_size=2, max_size=30))
def test_compare_equals_the_slow_one(rows):
    scores, issame = [score for score, _ in rows], [same for _, same in rows]
    if len(set(issame)) == 1:
        return
    result = compare(np.array(scores), np.array(issame), FARS)
    assert result.tar == {far: slow_compare(scores, issame, far) for far in FARS}
    assert (result.pairs, result.same_pairs) == (len(rows), sum(issame))


def test_compare_equals_the_slow_one_on_many_scores():
    random = np.random.default_rng(0)
    issame = random.random(400) < 0.2
    scores = random.normal(size=400) + 2 * issame
    result = compare(scores, issame)
    for far in identification.FARS:
        assert result.tar[far] == slow_compare(scores.tolist(), issame.tolist(), far)


def test_the_nearest_corner_may_lie_above_the_rate():
    """Scores fall; + same, - different: + - - - - + . Corners at FAR 0 and 1 only: the run between is straight."""
    scores = np.array([6.0, 5, 4, 3, 2, 1])
    issame = np.array([True, False, False, False, False, True])
    tar = compare(scores, issame, [0.2, 0.4, 0.5, 0.6]).tar
    assert tar[0.2] is UNMEASURED  # of four pairs of two people
    assert tar[0.4] == (0.5, 0.0, 6)
    assert tar[0.5] == (1.0, 1.0, 1)  # equally near: the larger FAR, and its largest TAR
    assert tar[0.6].false_rate == 1


def test_of_one_far_the_largest_tar():
    scores = np.array([5.0, 4, 3, 2, 1])
    issame = np.array([True, False, True, True, False])
    assert compare(scores, issame, [0.5]).tar[0.5] == (1.0, 0.5, 2)


def test_tied_scores_are_accepted_together():
    scores = np.array([1.0, 1, 0, 0])
    issame = np.array([True, False, True, False])
    assert compare(scores, issame, [0.4, 0.5]).tar == {0.4: UNMEASURED, 0.5: (0.5, 0.5, 1)}
    assert compare(scores, issame).auc == 0.5


def test_auc_by_counting():
    scores, issame = np.array([4.0, 3, 2, 1]), np.array([True, False, True, False])
    assert compare(scores, issame).auc == 0.75  # three of four (same, different) are in order


@pytest.mark.parametrize(
    ("scores", "issame", "fars", "message"),
    [
        ([1.0], [True], (0.1,), "got 1 and 0"),
        ([], np.empty(0, bool), (0.1,), "got 0 and 0"),
        ([1.0, 2.0], [False, False], (0.1,), "got 0 and 2"),
        ([1.0, 2.0], [True], (0.1,), "a score and a bool for each pair"),
        ([1.0, 2.0], [1, 0], (0.1,), "a score and a bool for each pair"),
        ([1.0, np.nan], [True, False], (0.1,), "finite scores, got nan"),
        ([1.0, 2.0], [True, False], (0.0,), "rates above 0"),
        ([1.0, 2.0], [True, False], (1.1,), "rates above 0"),
    ],
)
def test_compare_refuses(scores, issame, fars, message):
    with pytest.raises(ValueError, match=message):
        compare(np.array(scores), np.array(issame), fars)


def test_pair_scores_do_not_depend_on_blocks(monkeypatch):
    random = np.random.default_rng(1)
    embeddings = random.normal(size=(40, 133))
    first, second = random.integers(0, 40, (2, 1000))
    whole = pair_scores(embeddings, first, second)
    monkeypatch.setattr(identification, "PAIRS_AT_ONCE", 7)
    assert np.array_equal(pair_scores(embeddings, first, second), whole)
    one_by_one = [np.sum(embeddings[a] * embeddings[b]) for a, b in zip(first, second, strict=True)]
    assert np.array_equal(whole, one_by_one)
    assert whole == pytest.approx(np.diag(embeddings[first] @ embeddings[second].T), abs=1e-12)


# ---- 1:N ----


def slow_search(probes, subjects, gallery, gallery_subjects, ranks, fpirs):
    """Every score by itself, in whole numbers, so that ties are ties."""
    hits, alarms, mates, strangers = dict.fromkeys(ranks, 0), [], [], []
    for probe, subject in zip(probes, subjects, strict=True):
        scores = {whose: int(np.dot(probe, row)) for row, whose in zip(gallery, gallery_subjects, strict=True)}
        mate = scores.pop(subject, None)
        strangers += scores.values()
        best = max(scores.values(), default=-math.inf)
        if mate is None:
            alarms.append(best)
        else:
            mates.append((mate, best))
            rank = 1 + sum(score >= mate for score in scores.values())
            for k in ranks:
                hits[k] += rank <= k
    tpir, pooled = {}, {}
    for fpir in fpirs:
        if mates and alarms:
            number = allowed(fpir, len(alarms))
            threshold = sorted(alarms, reverse=True)[max(number - 1, 0)]
            found = sum(mate > best and mate > threshold for mate, best in mates)
            point = (found / len(mates), sum(a > threshold for a in alarms) / len(alarms), threshold)
            tpir[fpir] = point if number else UNMEASURED
        count = math.ceil(len(probes) * fpir)
        if not alarms and not allowed(fpir, len(probes)):
            pooled[fpir] = UNMEASURED
        elif not alarms and count <= len(strangers):
            threshold = sorted(strangers, reverse=True)[count - 1]
            false = sum(s > threshold for s in strangers) / len(strangers)
            pooled[fpir] = (sum(mate > threshold for mate, _ in mates) / len(mates), false, threshold)
    return {k: hits[k] / len(mates) if mates else math.nan for k in ranks}, tpir, pooled, len(mates), len(alarms)


def approximately(point):
    return pytest.approx(point, abs=1e-12, nan_ok=True)


def assert_as_slow(probes, subjects, gallery, gallery_subjects, ranks=(1, 2, 5), fpirs=(0.05, 0.29, 0.5, 1.0)):
    result = search(probes, subjects, gallery, gallery_subjects, ranks=ranks, fpirs=fpirs)
    slow = slow_search(probes, subjects.tolist(), gallery, gallery_subjects.tolist(), ranks, fpirs)
    assert result.ranks == pytest.approx(slow[0], abs=1e-12, nan_ok=True)
    assert result.tpir == {fpir: approximately(point) for fpir, point in slow[1].items()}
    assert result.pooled_tpir == {fpir: approximately(point) for fpir, point in slow[2].items()}
    assert (result.mated, result.unmated, result.gallery) == (*slow[3:], len(gallery))
    return result


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_search_equals_the_slow_one(data):
    """Small whole numbers: ties of all kinds; few subjects: probes with and without mates."""
    rows = st.lists(st.integers(-2, 2), min_size=2, max_size=2)
    gallery_subjects = data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=7, unique=True))
    gallery = [data.draw(rows) for _ in gallery_subjects]
    everyone = st.sampled_from(gallery_subjects) if data.draw(st.booleans()) else st.integers(0, 8)
    subjects = data.draw(st.lists(everyone, min_size=1, max_size=9))
    probes = [data.draw(rows) for _ in subjects]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identification, "SCORES_AT_ONCE", data.draw(st.integers(1, 40)))
        assert_as_slow(
            np.array(probes, float), np.array(subjects), np.array(gallery, float), np.array(gallery_subjects)
        )


def test_search_equals_the_slow_one_on_a_larger_set():
    random = np.random.default_rng(2)
    gallery = random.integers(-5, 6, (60, 8)).astype(float)
    subjects = random.integers(0, 80, 300)  # a quarter have no mate
    probes = random.integers(-5, 6, (300, 8)).astype(float)
    probes[subjects < 60] += 2 * gallery[subjects[subjects < 60]]
    result = assert_as_slow(probes, subjects, gallery, np.arange(60), ranks=(1, 5, 10), fpirs=(0.02, 0.1, 0.29))
    assert 0.2 < result.ranks[1] < result.ranks[5] < 1  # a case that tells them apart
    assert 0 < result.tpir[0.02].rate < result.tpir[0.29].rate
    closed = subjects < 60
    result = assert_as_slow(probes[closed], subjects[closed], gallery, np.arange(60), fpirs=(0.01, 0.1))
    assert 0 < result.pooled_tpir[0.01].rate < result.pooled_tpir[0.1].rate


def test_a_stranger_with_the_mates_score_ranks_before_it():
    gallery = np.array([[1.0, 0], [1, 0], [0, 1]])
    result = search(np.array([[1.0, 0]]), np.array([10]), gallery, np.array([10, 11, 12]), ranks=(1, 2))
    assert result.ranks == {1: 0, 2: 1}


def test_open_set_by_hand():
    """Alarms 9, 5, 3, 1 of probes without a mate; mates 8 (found), 4 (below its stranger), 10 (found)."""
    gallery, whose = np.array([[1.0, 0, 0], [0, 1, 0]]), np.array([1, 2])
    probes = np.array([[9, 0, 0], [2, 5, 0], [3, 0, 0], [0, 1, 0], [8, 0, 0], [4, 6, 0], [0, 10, 0]], float)
    subjects = np.array([7, 7, 8, 9, 1, 1, 2])
    result = search(probes, subjects, gallery, whose, fpirs=(0.1, 0.25, 0.5, 0.99, 1.0))
    assert result.tpir[0.1] is UNMEASURED  # less than one alarm
    assert result.tpir[0.25] == (pytest.approx(1 / 3), 0, 9)
    assert result.tpir[0.5] == (pytest.approx(2 / 3), 0.25, 5)
    assert result.tpir[0.99] == (pytest.approx(2 / 3), 0.5, 3)  # 3.96 alarms are three
    assert result.tpir[1.0].threshold == 1
    assert (result.mated, result.unmated) == (3, 4)
    assert result.pooled_tpir == {}


def test_without_a_mated_probe_there_is_no_rank():
    result = search(np.ones((2, 2)), np.array([5, 6]), np.ones((1, 2)), np.array([7]))
    assert math.isnan(result.ranks[1])
    assert result.tpir == result.pooled_tpir == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probes": np.empty((0, 2))}, "expected probes of shape"),
        ({"gallery": np.empty((0, 2))}, "expected gallery of shape"),
        ({"probes": np.array([[1.0, np.nan], [0, 1]])}, "probes: row 0 is not finite"),
        ({"gallery": np.array([[1.0, 0], [np.inf, 1]])}, "gallery: row 1 is not finite"),
        ({"probes": np.ones((2, 3))}, "expected one dimension, got 3 in probes and 2"),
        ({"probe_subjects": np.array([1])}, "probes: expected a subject for each of 2 rows"),
        ({"gallery_subjects": np.array([4, 4])}, "one template a subject in the gallery, got several of subject 4"),
        ({"ranks": (0,)}, "ranks of at least 1"),
        ({"fpirs": (0.0,)}, "rates above 0"),
    ],
)
def test_search_refuses(change, message):
    good = {
        "probes": np.eye(2),
        "probe_subjects": np.array([1, 2]),
        "gallery": np.eye(2),
        "gallery_subjects": np.array([1, 2]),
    }
    search(**good)
    with pytest.raises(ValueError, match=message):
        search(**(good | change))


# ---- the largest of many ----


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 6), st.lists(st.lists(st.integers(-9, 9), max_size=12), max_size=9))
def test_largest_equals_sorting(count, parts):
    largest = Largest(count)
    for part in parts:
        largest.add(np.array(part, float))
    everything = sorted(itertools.chain(*parts), reverse=True)
    assert largest.falling().tolist() == everything[:count]


def test_largest_holds_little():
    largest = Largest(10)
    random = np.random.default_rng(3)
    for _ in range(100):
        largest.add(random.normal(size=(100, 10)))
        assert sum(part.size for part in largest._parts) <= 20
