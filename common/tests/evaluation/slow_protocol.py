"""The verification protocol again, from the words of the specification, one pair at a time in plain loops."""

import itertools
import math
import statistics
from fractions import Fraction


def slow_fold_of(pairs, folds):
    """Fold of each pair: contiguous, the first ones a pair longer when it does not divide."""
    fold_of = []
    for fold in range(folds):
        fold_of += [fold] * (pairs // folds + (1 if fold < pairs % folds else 0))
    return fold_of


def slow_verify(distances, issame, folds, fars):
    fold_of = slow_fold_of(len(distances), folds)
    rows = list(zip(distances, issame, fold_of, strict=True))
    accuracies, thresholds = [], []
    tars = {far: [] for far in fars}
    for held_out in range(folds):
        best_threshold, best_right = None, -1
        for k in range(400):
            right = 0
            for distance, same, fold in rows:
                if fold != held_out and (distance < k / 100) == same:
                    right += 1
            if right > best_right:
                best_threshold, best_right = k / 100, right
        tested = [(distance < best_threshold) == same for distance, same, fold in rows if fold == held_out]
        accuracies.append(sum(tested) / len(tested))
        thresholds.append(best_threshold)

        different = [distance for distance, same, fold in rows if not same and fold != held_out]
        own_same = [distance for distance, same, fold in rows if same and fold == held_out]
        if not different or not own_same:
            continue
        curve = [(sum(d < k / 1000 for d in different) / len(different), k / 1000) for k in range(4000)]
        for far in fars:
            if len(different) * Fraction(str(far)) < 1:  # not one false accept: nothing to measure the FAR with
                continue
            threshold = slow_far_threshold(far, curve)
            tars[far].append(sum(d < threshold for d in own_same) / len(own_same))

    mean = sum(accuracies) / folds
    return {
        "accuracy": mean,
        "std": math.sqrt(sum((a - mean) ** 2 for a in accuracies) / folds),
        "threshold": sum(thresholds) / folds,
        "tar": {far: sum(v) / len(v) if v else math.nan for far, v in tars.items()},
        "tar_std": {far: statistics.pstdev(v) if v else math.nan for far, v in tars.items()},
        "auc": slow_auc(distances, issame),
        "eer": slow_eer(distances, issame),
    }


def slow_far_threshold(target, curve):
    if curve[-1][0] < target:
        return 0.0
    below = above = None
    for far, threshold in curve:
        if far <= target:
            below = far, threshold
        elif above is None:
            above = far, threshold
    if above is None or below[0] == target:
        # between `below` and `above` the line starts at `below`
        return below[1]
    return below[1] + (target - below[0]) * (above[1] - below[1]) / (above[0] - below[0])


def slow_auc(distances, issame):
    """Chance that a same pair is closer than a different pair, ties counting half."""
    wins = [
        1.0 if s < d else 0.5 if s == d else 0.0
        for (s, a), (d, b) in itertools.product(zip(distances, issame, strict=True), repeat=2)
        if a and not b
    ]
    return sum(wins) / len(wins) if wins else math.nan


def slow_eer(distances, issame):
    same = [d for d, s in zip(distances, issame, strict=True) if s]
    different = [d for d, s in zip(distances, issame, strict=True) if not s]
    if not same or not different:
        return math.nan
    points = [(0.0, 0.0)]
    for cut in sorted(set(distances)):
        points.append((sum(d <= cut for d in different) / len(different), sum(d <= cut for d in same) / len(same)))
    for (f0, t0), (f1, t1) in itertools.pairwise(points):
        if f1 + t1 >= 1:
            part = (1 - f0 - t0) / ((f1 - f0) + (t1 - t0))
            return f0 + part * (f1 - f0)
    raise AssertionError("the ROC ends at (1, 1)")
