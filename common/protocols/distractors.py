"""Identification among distractors, as MegaFace does it: does a person's other photo come before a million strangers?

Every photo of a person is a probe. Each other photo of the person in turn is hidden among all distractors, and its rank
is 1 + the number of distractors whose score with the probe reaches its own. Distractors are read once. Only the scores
of a block of probes with a block of distractors exist at a time. Definitions: docs/protocols.md.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.evaluation.verification import check_rates, false_accepts
from common.io.progress import ProgressBar
from common.protocols.identification import UNMEASURED, Largest, OperatingPoint, check_embeddings

MAX_RANK = 1000
FARS = (1e-6, 1e-5, 1e-4)
PROBES_AT_ONCE = 1024
DISTRACTORS_AT_ONCE = 8192  # with 1,024 probes: 32 MB of scores
MOST_KEPT = 2**23  # scores of strangers, to read the thresholds from


@dataclass(frozen=True, eq=False)
class DistractorSearch:
    """Figures of one set of distractors."""

    cmc: np.ndarray  # (max_rank,) float64; entry k - 1: share of mates of rank k or better; NaN without mates
    tar: dict[float, OperatingPoint]  # by the FAR allowed; UNMEASURED where that allows none; empty without mates
    probes: int  # photos searched for
    lone_probes: int  # of these, the only photos of their people; they are compared with strangers only
    subjects: int  # people among the probes
    mates: int  # ordered pairs of two photos of a person, each of them one search
    distractors: int  # strangers in the gallery

    def rank(self, k: int) -> float:
        """Share of mates of rank k or better."""
        return float(self.cmc[k - 1])


def search_among_distractors(
    probes: np.ndarray,
    subjects: np.ndarray,
    distractors: Iterable[np.ndarray],
    count: int,
    *,
    max_rank: int = MAX_RANK,
    fars: Sequence[float] = FARS,
) -> DistractorSearch:
    """CMC and TAR at FAR among distractors.

    Args:
        probes: (P, D) float, L2-normalised.
        subjects: (P,), who is on each: numbers or strings.
        distractors: blocks of (n, D) float, L2-normalised, none of them showing one of the subjects; read once.
        count: number of distractors that the blocks hold together.
        max_rank: length of the CMC; 4 * P * max_rank bytes are held.
        fars: false accept rates, each above 0 and at most 1.

    Raises:
        ValueError: no probe, no distractor, another number of distractors than `count`, shapes that do not fit, values
            that are not finite, or a rate or a rank out of range.

    Computed in float32. TAR: share of mates whose score is above the lowest threshold that lets through at most
    floor(FAR * P * count) of all scores of probes with distractors. Scores that differ by less than the rounding of a
    float32 product (about 1e-7) may rank either way.
    """
    probes, subjects = np.asarray(probes, np.float32), np.asarray(subjects)
    check_embeddings(probes, subjects, "probes")
    check_rates(fars)
    if count < 1 or max_rank < 1:
        raise ValueError(f"expected at least one distractor and one rank, got {count} and {max_rank}")
    total = len(probes) * count
    accepts = {float(far): false_accepts(far, total) for far in fars}
    kept = min(max(accepts.values(), default=0) + 1, total)
    if kept > MOST_KEPT:
        most = MOST_KEPT / total
        raise ValueError(f"expected false accept rates of at most {most:.1g} for {total} comparisons, got {max(fars)}")
    strangers = Largest(kept)
    best = np.full((len(probes), max_rank), -np.inf, np.float32)  # of each probe; column 0 holds the least

    seen = 0
    with ProgressBar("megaface", "distractors", count) as bar:
        for block in _regrouped(distractors, probes.shape[1], count, bar):
            for start in range(0, len(probes), PROBES_AT_ONCE):
                part = slice(start, start + PROBES_AT_ONCE)
                scores = probes[part] @ block.T
                strangers.add(scores)
                _take_in(best[part], scores)
            seen += len(block)
    if seen != count:
        raise ValueError(f"expected {count} distractors, got {seen}")

    best.sort(axis=1)
    mate_scores, ranks, people, lone = _mates(probes, subjects, best)
    reached = np.bincount(np.minimum(ranks, max_rank + 1), minlength=max_rank + 2)[1:-1]
    return DistractorSearch(
        cmc=np.cumsum(reached) / len(ranks) if len(ranks) else np.full(max_rank, np.nan),
        tar=_tar(mate_scores, strangers.falling(), accepts, total) if len(ranks) else {},
        probes=len(probes),
        lone_probes=lone,
        subjects=people,
        mates=len(ranks),
        distractors=count,
    )


def _take_in(best: np.ndarray, scores: np.ndarray) -> None:
    """Replace each row of `best`, (n, k), by the k largest of it and of the row of `scores`; the least comes first."""
    better = scores > best[:, :1]
    if np.count_nonzero(better) > better.size // 8:  # the first blocks
        merged = np.hstack([best, scores])
        best[:] = np.partition(merged, scores.shape[1], axis=1)[:, scores.shape[1] :]
        return
    rows, columns = np.nonzero(better)
    if not rows.size:
        return
    counts = np.bincount(rows, minlength=len(best))
    changed = np.flatnonzero(counts)
    width = int(counts.max())
    new = np.full((len(best), width), -np.inf, np.float32)
    new[rows, np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]] = scores[rows, columns]
    best[changed] = np.partition(np.hstack([best[changed], new[changed]]), width, axis=1)[:, width:]


def _mates(probes: np.ndarray, subjects: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Scores and ranks of all ordered pairs of two photos of a person; the number of people; of those with one photo.

    `best` is sorted along its rows. A rank beyond its width is width + 1.
    """
    order = np.argsort(subjects, kind="stable")
    starts = np.unique(subjects[order], return_index=True)[1]
    groups = np.split(order, starts[1:])
    scores, ranks = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for photos in groups:
        own = probes[photos] @ probes[photos].T
        for row, probe in enumerate(photos):
            mates = np.delete(own[row], row)
            scores.append(mates)
            ranks.append(1 + best.shape[1] - np.searchsorted(best[probe], mates, side="left"))
    return np.concatenate(scores), np.concatenate(ranks), len(groups), sum(len(photos) == 1 for photos in groups)


def _tar(
    mates: np.ndarray, strangers: np.ndarray, accepts: dict[float, int], total: int
) -> dict[float, OperatingPoint]:
    points = {}
    for far, most in accepts.items():
        if not most:
            points[far] = UNMEASURED
            continue
        threshold = strangers[most] if most < total else -np.inf
        false = np.sum(strangers > threshold) / total
        points[far] = OperatingPoint(float(np.mean(mates > threshold)), float(false), float(threshold))
    return points


def _regrouped(blocks: Iterable[np.ndarray], dimension: int, count: int, bar: ProgressBar) -> Iterator[np.ndarray]:
    """The rows of `blocks`, checked, in blocks of at most DISTRACTORS_AT_ONCE."""
    held: list[np.ndarray] = []
    seen = waiting = 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != dimension:
            raise ValueError(f"expected distractors of shape (n, {dimension}), as the probes, got {block.shape}")
        if seen + len(block) > count:
            raise ValueError(f"expected {count} distractors, got more")
        for start in range(0, len(block), DISTRACTORS_AT_ONCE):
            part = np.asarray(block[start : start + DISTRACTORS_AT_ONCE], np.float32)
            finite = np.isfinite(part).all(axis=1)
            if not finite.all():
                raise ValueError(f"distractor {seen + int(np.argmin(finite))} (from 0) is not finite")
            if waiting + len(part) > DISTRACTORS_AT_ONCE:
                yield np.concatenate(held)
                held, waiting = [], 0
            held.append(part)
            waiting += len(part)
            seen += len(part)
            bar.update(len(part))
    if held:
        yield np.concatenate(held)
