"""Comparing templates: 1:1 (is it the same person?) and 1:N (who of the gallery is it?), block by block.

Scores are inner products of L2-normalised embeddings. Ties count against the network: a stranger with the mate's score
ranks before it. Definitions and their sources: docs/protocols.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.evaluation.verification import check_rates, check_rows, false_accepts
from common.io.progress import ProgressBar

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FPIRS = (1e-3, 1e-2, 1e-1)
RANKS = (1, 5, 10)
PAIRS_AT_ONCE = 1024  # 8 MB at 512 dimensions, float64, so that both sides stay in the cache
SCORES_AT_ONCE = 2**21  # of a block of probes with the gallery, 16 MB


class OperatingPoint(NamedTuple):
    """A threshold and what it costs."""

    rate: float  # of mates accepted (TAR, or TPIR), from 0 to 1
    false_rate: float  # of strangers accepted (FAR, or FPIR), from 0 to 1: the one reached, not the one asked for
    threshold: float  # the score


UNMEASURED = OperatingPoint(math.nan, math.nan, math.nan)
"""In place of a rate that allows less than one false accept or alarm: the comparisons are too few to measure it."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """1:1 figures, in the order of the record."""

    pairs: int  # compared
    same_pairs: int  # of these, of one person
    auc: float  # area under the ROC
    tar: dict[float, OperatingPoint]  # by the FAR asked for; UNMEASURED where the pairs of two people are too few


@dataclass(frozen=True, eq=False)
class Search:
    """1:N figures against one gallery, in the order of the record; UNMEASURED: the probes are too few."""

    gallery: int  # templates in the gallery
    mated: int  # probes with a mate in the gallery
    unmated: int  # probes without
    ranks: dict[int, float]  # by k: share of mated probes with their mate among the k best; NaN without mated probes
    tpir: dict[float, OperatingPoint]  # open set, by the FPIR asked for; empty without unmated or without mated probes
    pooled_tpir: dict[float, OperatingPoint]  # insightface's ijb_1n.py, by FPIR; empty when a probe has no mate


def pair_scores(embeddings: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Score of each pair of rows.

    Args:
        embeddings: (T, D) float, L2-normalised.
        first: (P,) int, rows of `embeddings`.
        second: (P,) int, the rows that they are compared with.

    Returns:
        (P,) float64.

    Each row is summed by `numpy.sum`, as insightface does, so that no bit of a score depends on the size of a block.
    """
    scores = np.empty(len(first))
    with ProgressBar("1:1", "pairs", len(first)) as bar:
        for start in range(0, len(first), PAIRS_AT_ONCE):
            block = slice(start, start + PAIRS_AT_ONCE)
            scores[block] = np.sum(embeddings[first[block]] * embeddings[second[block]], axis=-1)
            bar.update(len(scores[block]))
    return scores


def compare(scores: np.ndarray, issame: np.ndarray, fars: Sequence[float] = FARS) -> Comparison:
    """TAR at each FAR, read from the ROC as insightface reads it.

    Args:
        scores: (P,) float, higher is more alike.
        issame: (P,) bool.
        fars: false accept rates, each above 0 and at most 1.

    Raises:
        ValueError: no pair of one kind, shapes that differ, a score that is not finite, or a rate out of range.

    The ROC is scikit-learn's `roc_curve` with its defaults, which leaves out points on a straight line between two
    others. The point whose FAR is nearest to the one asked for is taken; among equally near points the one with the
    larger FAR, and among equal FARs the one with the largest TAR. `false_rate` is the FAR of the point, which may lie
    above the one asked for.
    """
    from sklearn.metrics import auc, roc_curve  # its import takes a second, which every command would wait

    scores, issame = np.asarray(scores), np.asarray(issame)
    if scores.ndim != 1 or issame.shape != scores.shape or issame.dtype != np.bool_:
        raise ValueError(
            f"expected a score and a bool for each pair, got {scores.shape}, {issame.shape} {issame.dtype}"
        )
    same = int(issame.sum())
    if not 0 < same < len(issame):
        raise ValueError(f"expected pairs of one person and of two, got {same} and {len(issame) - same}")
    if not np.isfinite(scores).all():
        raise ValueError(f"expected finite scores, got {scores[~np.isfinite(scores)][0]}")
    check_rates(fars)
    fpr, tpr, thresholds = roc_curve(issame, scores)
    falling = slice(None, None, -1)  # argmin takes the first of equals: the largest FAR, and of one FAR the largest TAR
    tar = {}
    for far in fars:
        if not false_accepts(far, len(issame) - same):
            tar[float(far)] = UNMEASURED
            continue
        nearest = int(np.argmin(np.abs(fpr[falling] - far)))
        point = (tpr[falling][nearest], fpr[falling][nearest], thresholds[falling][nearest])
        tar[float(far)] = OperatingPoint(*map(float, point))
    return Comparison(len(scores), same, float(auc(fpr, tpr)), tar)


def search(
    probes: np.ndarray,
    probe_subjects: np.ndarray,
    gallery: np.ndarray,
    gallery_subjects: np.ndarray,
    *,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[float] = FPIRS,
) -> Search:
    """Closed-set and open-set identification against a gallery with one template a subject.

    Args:
        probes: (P, D) float, L2-normalised.
        probe_subjects: (P,) int.
        gallery: (G, D) float, L2-normalised.
        gallery_subjects: (G,) int, all different.
        ranks: k of the figures rank-k, each at least 1.
        fpirs: false positive identification rates, each above 0 and at most 1.

    Raises:
        ValueError: no probe, an empty gallery, two templates of a subject in it, values that are not finite, shapes
            that do not fit, or a rank or a rate out of range.

    Rank of a mate: 1 + the number of strangers whose score reaches its own. Open set, as insightface's ijb_evals.py:
    the threshold is the floor(U * FPIR)-th largest of the best scores of the U unmated probes; a mated probe is
    found if its mate's score is above the threshold and above all strangers'. Pooled, as its ijb_1n.py: the threshold
    is the ceil(P * FPIR)-th largest of all scores with strangers, and the mate's score has to be above it, whatever its
    rank. Only the scores of a block of probes with the gallery exist at a time.
    """
    check_embeddings(probes, probe_subjects, "probes")
    check_embeddings(gallery, gallery_subjects, "gallery")
    if probes.shape[1] != gallery.shape[1]:
        raise ValueError(f"expected one dimension, got {probes.shape[1]} in probes and {gallery.shape[1]} in gallery")
    subjects, columns = np.unique(gallery_subjects, return_index=True)
    if len(subjects) < len(gallery_subjects):
        twice = np.delete(gallery_subjects, columns)[0]
        raise ValueError(f"expected one template a subject in the gallery, got several of subject {twice}")
    if not all(rank >= 1 for rank in ranks):
        raise ValueError(f"expected ranks of at least 1, got {tuple(ranks)}")
    check_rates(fpirs)

    found = np.minimum(np.searchsorted(subjects, probe_subjects), len(subjects) - 1)
    has_mate = subjects[found] == probe_subjects
    mate_column = columns[found]
    mate_scores = np.full(len(probes), -np.inf)
    best_strangers = np.empty(len(probes))
    mate_ranks = np.empty(len(probes), np.int64)
    pooled_counts = {float(fpir): math.ceil(len(probes) * fpir) for fpir in fpirs}
    strangers = Largest(max(pooled_counts.values(), default=0))
    with ProgressBar("1:N", "probes", len(probes)) as bar:
        step = max(1, SCORES_AT_ONCE // len(gallery))
        for start in range(0, len(probes), step):
            block = slice(start, start + step)
            scores = probes[block] @ gallery.T
            mated = np.flatnonzero(has_mate[block])
            mates = (mated, mate_column[block][mated])
            mate_scores[block][mated] = scores[mates]
            scores[mates] = -np.inf
            best_strangers[block] = scores.max(axis=1)
            mate_ranks[block] = 1 + (scores >= mate_scores[block][:, None]).sum(axis=1)
            scores[mates] = np.nan
            strangers.add(scores[~np.isnan(scores)])
            bar.update(len(scores))

    unmated = int((~has_mate).sum())
    ranked = mate_ranks[has_mate]
    return Search(
        ranks={k: float(np.mean(ranked <= k)) if ranked.size else math.nan for k in ranks},
        tpir=_open_set(mate_scores, best_strangers, has_mate, fpirs) if 0 < unmated < len(probes) else {},
        pooled_tpir={} if unmated else _pooled(mate_scores, strangers, pooled_counts, len(probes) * (len(gallery) - 1)),
        mated=len(probes) - unmated,
        unmated=unmated,
        gallery=len(gallery),
    )


class Largest:
    """The `count` largest of any number of scores, in memory of twice as many."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._floor = -np.inf  # once `count` are kept, what does not exceed the least of them changes nothing
        self._parts: list[np.ndarray] = []
        self._held = 0

    def add(self, scores: np.ndarray) -> None:
        """Take in scores of any shape."""
        if not self._count:
            return
        new = scores[scores > self._floor] if self._floor > -np.inf else scores.ravel()
        if len(new) > self._count:
            new = np.partition(new, len(new) - self._count)[len(new) - self._count :]
        self._parts.append(new)
        self._held += len(new)
        if self._held > 2 * self._count:
            kept = self._kept()
            self._parts, self._held, self._floor = [kept], len(kept), float(kept.min())

    def falling(self) -> np.ndarray:
        """(at most count,) the largest scores, falling."""
        return np.sort(self._kept())[::-1]

    def _kept(self) -> np.ndarray:
        scores = np.concatenate(self._parts) if self._parts else np.empty(0)
        surplus = len(scores) - self._count
        return np.partition(scores, surplus)[surplus:] if surplus > 0 else scores


def _open_set(
    mate_scores: np.ndarray, best_strangers: np.ndarray, has_mate: np.ndarray, fpirs: Sequence[float]
) -> dict[float, OperatingPoint]:
    alarms = np.sort(best_strangers[~has_mate])[::-1]
    mates, rivals = mate_scores[has_mate], best_strangers[has_mate]
    points = {}
    for fpir in fpirs:
        allowed = false_accepts(fpir, len(alarms))
        if not allowed:
            points[float(fpir)] = UNMEASURED
            continue
        threshold = alarms[allowed - 1]
        rate = np.mean((mates > rivals) & (mates > threshold))
        points[float(fpir)] = OperatingPoint(float(rate), float(np.mean(alarms > threshold)), float(threshold))
    return points


def _pooled(
    mate_scores: np.ndarray, strangers: Largest, counts: dict[float, int], total: int
) -> dict[float, OperatingPoint]:
    largest = strangers.falling()
    points = {}
    for fpir, count in counts.items():
        if not false_accepts(fpir, len(mate_scores)):
            points[fpir] = UNMEASURED
        elif count <= len(largest):
            threshold = largest[count - 1]
            false = np.sum(largest > threshold) / total
            points[fpir] = OperatingPoint(float(np.mean(mate_scores > threshold)), float(false), float(threshold))
    return points


def check_embeddings(embeddings: np.ndarray, subjects: np.ndarray, name: str) -> None:
    """Raise a ValueError unless `embeddings` are finite floats, (N, D), with a subject for each row."""
    check_rows(embeddings, name)
    if np.shape(subjects) != (len(embeddings),):
        raise ValueError(f"{name}: expected a subject for each of {len(embeddings)} rows, got {np.shape(subjects)}")
