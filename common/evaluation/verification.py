"""Face verification: are two images of one person? The 10-fold protocol of LFW, on embeddings or on distances.

distance = squared L2 between normalised embeddings, from 0 to 4; a pair is called "same" if distance < threshold.
Folds are contiguous and unshuffled, of the sizes that sklearn's KFold(shuffle=False) gives: published lists of pairs
are ordered so that no person is in two folds. Pure functions, NumPy in and NumPy out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

# Whole numbers are divided, so that each threshold is the double nearest to its decimal.
ACCURACY_THRESHOLDS = np.arange(400) / 100
# The scripts behind published figures read TAR from a finer grid than accuracy.
FAR_THRESHOLDS = np.arange(4000) / 1000

# Rounding a unit vector to half precision moves its norm by up to 2^-11 = 5e-4, which is fine; anything further off
# was not normalised. What the tolerance lets through moves a distance by at most 0.008, less than one threshold step.
NORM_TOLERANCE = 1e-3
_PAIRS_AT_ONCE = 1024  # float64 copies of this many pairs exist at a time


class Roc(NamedTuple):
    """Receiver operating characteristic over all pairs, from (0, 0) to (1, 1); both arrays empty when undefined."""

    fpr: np.ndarray
    tpr: np.ndarray


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """What the protocol measures. Rates are fractions from 0 to 1; NaN where the pairs cannot measure them."""

    accuracy: float  # mean over the folds of the held-out accuracy
    std: float  # population standard deviation of the same over the folds
    threshold: float  # mean of the folds' thresholds, in squared L2 distance
    tar: dict[float, float]  # by false accept rate: mean over the folds that can measure it; NaN where none can
    tar_std: dict[float, float]  # its population standard deviation over these folds
    roc: Roc  # over all pairs at once
    auc: float  # area under `roc`
    eer: float  # equal error rate, where the linearly interpolated `roc` crosses fpr = 1 - tpr
    distances: np.ndarray  # (P,) float64, squared L2
    issame: np.ndarray  # (P,) bool
    fold_accuracies: np.ndarray  # (folds,) float64
    fold_thresholds: np.ndarray  # (folds,) float64
    zero_embeddings: int = 0  # how many of the 2P embeddings were zero vectors: above 0, the network has collapsed


def flip_sum_normalise(embeddings: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """L2-normalised sum of the embeddings of images and of their mirror images.

    Args:
        embeddings: (N, D) float, raw.
        flipped: (N, D) float, raw, of the mirrored images.

    Returns:
        (N, D), float32 or, for float64 input, float64. A sum that is exactly zero has no direction and stays zero;
        its distance to every unit vector is then 1, not NaN.

    Raises:
        ValueError: shapes differ or are not (N, D), not float, or not finite (the first bad row is named).

    >>> flip_sum_normalise(np.array([[2.0, 1.0]]), np.array([[1.0, 3.0]]))  # (3, 4) has length 5
    array([[0.6, 0.8]])
    """
    check_rows(embeddings, "embeddings")
    check_rows(flipped, "flipped")
    if embeddings.shape != flipped.shape:
        raise ValueError(f"expected embeddings and flipped of one shape, got {embeddings.shape} and {flipped.shape}")
    total = embeddings.astype(np.float64) + flipped
    # Dividing by the largest entry first keeps the squares from overflowing or vanishing.
    largest = np.abs(total).max(axis=1, keepdims=True)
    total /= np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    total /= np.where(norm > 0, norm, 1)
    return total.astype(np.result_type(embeddings, flipped, np.float32), copy=False)


def cosine_of(distance: float) -> float:
    """The cosine of two unit vectors at a squared L2 distance.

    >>> cosine_of(0.5)
    0.75
    """
    return 1 - distance / 2


def pair_distances(embeddings: np.ndarray) -> tuple[np.ndarray, int]:
    """Squared L2 distance of each pair of normalised embeddings.

    Args:
        embeddings: (2P, D) float, L2-normalised; rows 2i and 2i+1 are pair i. Zero rows are allowed.

    Returns:
        (P,) float64 distances, and the number of zero rows.

    Raises:
        ValueError: not (2P, D), not float, not finite, or a row whose norm is neither 1 nor 0.

    >>> distances, zeros = pair_distances(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]))
    >>> distances.tolist(), zeros
    ([2.0, 4.0], 0)
    """
    check_rows(embeddings, "embeddings")
    rows = len(embeddings)
    if rows % 2:
        raise ValueError(f"expected two embeddings for each pair, got {rows}, an odd number")
    distances = np.empty(rows // 2)
    zeros = 0
    for start in range(0, rows, 2 * _PAIRS_AT_ONCE):
        block = embeddings[start : start + 2 * _PAIRS_AT_ONCE].astype(np.float64)
        norms = np.linalg.norm(block, axis=1)
        bad = np.flatnonzero((np.abs(norms - 1) > NORM_TOLERANCE) & (norms > 0))
        if bad.size:
            raise ValueError(
                f"expected L2-normalised embeddings, got norm {norms[bad[0]]:.6g} in row {start + bad[0]}; "
                "pass them through flip_sum_normalise"
            )
        zeros += int((norms == 0).sum())
        difference = block[0::2] - block[1::2]
        distances[start // 2 : start // 2 + len(difference)] = np.einsum("pd,pd->p", difference, difference)
    return distances, zeros


def verify(
    embeddings: np.ndarray, issame: np.ndarray, *, folds: int = 10, fars: Sequence[float] = (1e-1, 1e-2, 1e-3)
) -> VerificationResult:
    """Verification figures of embeddings: `verify_distances` of `pair_distances`.

    Args:
        embeddings: (2P, D) float, flip-summed and L2-normalised; rows 2i and 2i+1 are pair i.
        issame: (P,) bool.
        folds: number of folds, at least 2 and at most P.
        fars: false accept rates to read the true accept rate at, each in (0, 1].

    Raises:
        ValueError: as `pair_distances` and `verify_distances`.

    >>> same, different = [[1.0, 0.0], [0.8, 0.6]], [[1.0, 0.0], [-0.6, 0.8]]
    >>> result = verify(np.array((same + different) * 20), np.tile([True, False], 20))
    >>> result.accuracy, result.tar[0.1], result.tar[0.001]  # 20 different pairs: too few for a FAR of 0.001
    (1.0, 1.0, nan)
    """
    distances, zeros = pair_distances(np.asarray(embeddings))
    return verify_distances(distances, issame, folds=folds, fars=fars, zero_embeddings=zeros)


def verify_distances(
    distances: np.ndarray,
    issame: np.ndarray,
    *,
    folds: int = 10,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3),
    zero_embeddings: int = 0,
) -> VerificationResult:
    """Verification figures of the distances of P pairs. Memory and time do not depend on the embedding size.

    Args:
        distances: (P,) float, squared L2 of normalised embeddings, from 0 to 4.
        issame: (P,) bool.
        folds: number of folds, at least 2 and at most P.
        fars: false accept rates to read the true accept rate at, each in (0, 1].
        zero_embeddings: passed on to the result.

    Raises:
        ValueError: a wrong shape, dtype or range; the message says what came.

    Per fold, the threshold for accuracy is the first of 0, 0.01 .. 3.99 with the best accuracy on the other folds.
    The threshold for a FAR is read from the other folds' FAR over 0, 0.001 .. 3.999, see `far_threshold`. A fold
    counts for TAR if it has same pairs, and if the other folds have enough different pairs, see `false_accepts`.

    >>> result = verify_distances(np.tile([0.5, 1.0, 0.9, 1.5], 10), np.tile([True, False], 20), fars=[0.5])
    >>> result.accuracy, result.tar, round(result.auc, 3), result.eer
    (1.0, {0.5: 1.0}, 1.0, 0.0)
    """
    from sklearn.metrics import auc, roc_curve  # its import takes a second, which every command would wait

    distances, issame = np.asarray(distances), np.asarray(issame)
    _check_pairs(distances, issame, folds)
    check_rates(fars)

    distances = distances.astype(np.float64)
    parts = list(zip(np.array_split(distances, folds), np.array_split(issame, folds), strict=True))
    same = [np.sort(part[is_same]) for part, is_same in parts]
    different = [np.sort(part[~is_same]) for part, is_same in parts]

    accepted = _accepted(same, ACCURACY_THRESHOLDS)
    rejected = np.array([[len(d)] for d in different]) - _accepted(different, ACCURACY_THRESHOLDS)
    correct = accepted + rejected  # (folds, thresholds)
    best = (correct.sum(axis=0) - correct).argmax(axis=1)  # argmax returns the first of equals
    fold_accuracies = correct[np.arange(folds), best] / [len(part) for part, _ in parts]
    fold_thresholds = ACCURACY_THRESHOLDS[best]

    roc = Roc(np.empty(0), np.empty(0))
    if 0 < issame.sum() < len(issame):
        roc = Roc(*roc_curve(issame, -distances)[:2])
    tar, tar_std = _tar_at(fars, same, different)
    return VerificationResult(
        accuracy=float(fold_accuracies.mean()),
        std=float(fold_accuracies.std()),
        threshold=float(fold_thresholds.mean()),
        tar=tar,
        tar_std=tar_std,
        roc=roc,
        auc=float(auc(roc.fpr, roc.tpr)) if roc.fpr.size else math.nan,
        eer=equal_error_rate(roc),
        distances=distances,
        issame=issame,
        fold_accuracies=fold_accuracies,
        fold_thresholds=fold_thresholds,
        zero_embeddings=zero_embeddings,
    )


def false_accepts(rate: float, comparisons: int) -> int:
    """How many of the comparisons with strangers a false accept rate lets through. With 0, they cannot measure it.

    Args:
        rate: false accept rate, above 0 and at most 1; its decimal digits count, not the nearest double.
        comparisons: with strangers.

    >>> false_accepts(0.001, 2700)
    2
    >>> false_accepts(0.001, 999)
    0
    """
    return int(Fraction(repr(float(rate))) * comparisons)


def check_rows(values: np.ndarray, name: str) -> None:
    """Raise a ValueError unless `values` are finite floats, (rows, dimensions); `name` says what they are."""
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected {name} of shape (rows, dimensions), neither of them 0, got {values.shape}")
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"expected {name} of a float dtype, got {values.dtype}")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: row {int(np.argmin(finite))} is not finite; the network has diverged or is damaged")


def check_rates(rates: Sequence[float]) -> None:
    """Raise a ValueError unless all rates are above 0 and at most 1."""
    if not all(0 < rate <= 1 for rate in rates):
        raise ValueError(f"expected rates above 0 and at most 1, got {tuple(rates)}")


def far_threshold(target: float, far: np.ndarray, thresholds: np.ndarray) -> float:
    """The threshold at which a false accept rate is reached, linear between the points (far, threshold).

    Args:
        target: false accept rate, above 0.
        far: (T,) float, false accept rate at each threshold; does not fall, and starts at 0.
        thresholds: (T,) float, increasing.

    Returns:
        The threshold; 0 when `far` never reaches `target`. Where several thresholds have exactly the target rate (a
        plateau), the largest of them: all cost the same false accepts, and it misses the fewest true ones.

    >>> far_threshold(0.25, np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 2.0]))
    0.5
    """
    if far[-1] < target:
        return 0.0
    left = int(np.searchsorted(far, target, side="right")) - 1  # the last threshold that stays within the target
    if left == len(far) - 1:
        return float(thresholds[-1])
    part = (target - far[left]) / (far[left + 1] - far[left])  # never 0 / 0: far[left] <= target < far[left + 1]
    return float(thresholds[left] + part * (thresholds[left + 1] - thresholds[left]))


def equal_error_rate(roc: Roc) -> float:
    """Where the ROC, linear between its points, crosses fpr = 1 - tpr; NaN for an empty ROC.

    >>> equal_error_rate(Roc(fpr=np.array([0.0, 0.0, 0.5, 1.0]), tpr=np.array([0.0, 0.5, 1.0, 1.0])))
    0.25
    """
    if not roc.fpr.size:
        return math.nan
    excess = roc.fpr + roc.tpr - 1  # rises from -1 at (0, 0) to 1 at (1, 1)
    right = int(np.argmax(excess >= 0))
    part = -excess[right - 1] / (excess[right] - excess[right - 1])
    return float(roc.fpr[right - 1] + part * (roc.fpr[right] - roc.fpr[right - 1]))


def _accepted(sorted_distances: list[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """(folds, thresholds) int: how many distances of a fold lie strictly below a threshold."""
    return np.stack([np.searchsorted(fold, thresholds, side="left") for fold in sorted_distances])


def _tar_at(
    fars: Sequence[float], same: list[np.ndarray], different: list[np.ndarray]
) -> tuple[dict[float, float], dict[float, float]]:
    """Mean and standard deviation over the folds by false accept rate; NaN where no fold can measure it."""
    accepted = _accepted(different, FAR_THRESHOLDS)
    totals = np.array([len(fold) for fold in different])
    rates: dict[float, list[float]] = {float(far): [] for far in fars}
    for fold, held_out in enumerate(same):
        total = int(totals.sum() - totals[fold])
        if not total or not held_out.size:
            continue
        far = (accepted.sum(axis=0) - accepted[fold]) / total
        for target, measured in rates.items():
            if false_accepts(target, total):
                threshold = far_threshold(target, far, FAR_THRESHOLDS)
                measured.append(float(np.searchsorted(held_out, threshold, side="left")) / held_out.size)
    means = {target: float(np.mean(measured)) if measured else math.nan for target, measured in rates.items()}
    return means, {target: float(np.std(measured)) if measured else math.nan for target, measured in rates.items()}


def _check_pairs(distances: np.ndarray, issame: np.ndarray, folds: int) -> None:
    if issame.dtype != np.bool_:
        raise ValueError(f"expected issame of dtype bool, got {issame.dtype}")
    if distances.ndim != 1 or issame.shape != distances.shape:
        raise ValueError(f"expected one issame for each pair, got {issame.shape} for distances {distances.shape}")
    if not np.issubdtype(distances.dtype, np.floating):
        raise ValueError(f"expected distances of a float dtype, got {distances.dtype}")
    if folds < 2:
        raise ValueError(f"expected at least 2 folds, got {folds}")
    if len(distances) < folds:
        raise ValueError(f"expected at least one pair a fold, got {len(distances)} pairs for {folds} folds")
    longest = (2 * (1 + NORM_TOLERANCE)) ** 2
    bad = np.flatnonzero(~((distances >= 0) & (distances <= longest)))
    if bad.size:
        raise ValueError(
            f"expected squared distances of unit vectors, from 0 to 4, got {distances[bad[0]]} for pair {bad[0]}"
        )
