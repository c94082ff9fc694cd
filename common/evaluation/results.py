"""The two files that an evaluation leaves behind, written and read back.

SET.json holds every figure. SET.npz holds the distances, `issame` and the ROC.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.evaluation.evaluate import PROTOCOL, Evaluation
from common.evaluation.verification import cosine_of, verify_distances
from common.io.files import atomic_write, file_stem, read_json, write_json
from common.io.npz import read_arrays
from common.io.text import NOTHING, fixed, percent


class SavedEvaluation(NamedTuple):
    """An evaluation read back; `method` is None for the run's own network, else what was evaluated in its place."""

    evaluation: Evaluation
    step: int
    method: str | None


def figures(evaluation: Evaluation) -> dict[str, str]:
    """The figures of an evaluation as text, by the head of their column; NOTHING for what the pairs cannot measure."""
    result = evaluation.result
    return {
        "pairs": f"{len(result.issame):,}",
        "folds": str(len(result.fold_accuracies)),
        "accuracy ± std": _with_std(result.accuracy, result.std),
        **{f"TAR@FAR={far:g}": _with_std(rate, result.tar_std[far]) for far, rate in result.tar.items()},
        "AUC": fixed(result.auc, 4),
        "EER": percent(result.eer),
        "xnorm": f"{evaluation.xnorm:.4g}",
    }


def figure_table(
    evaluations: Iterable[tuple[str, Evaluation | None]], first: str = "set", columns: Sequence[str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of `figures`, for `common.io.text.text_table` or a page.

    Args:
        evaluations: what each row is called, and its evaluation; None: the set is missing.
        first: head of the column of names.
        columns: heads of the other columns; None: all.
    """
    cells = [(name, figures(one) if one else {"pairs": "missing"}) for name, one in evaluations]
    columns = list(dict.fromkeys(column for _, row in cells for column in row)) if columns is None else columns
    return [first, *columns], [[name, *(row.get(column, NOTHING) for column in columns)] for name, row in cells]


def threshold_table(evaluations: Iterable[tuple[str, Evaluation]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a table of thresholds, with the mirrored embedding added and without.

    Each is given as the squared distance below which, and as the cosine above which, a pair is called the same person.
    """
    head = ["threshold", "squared distance", "cosine", "without mirror: squared distance", "cosine"]
    rows = [
        [name, *_threshold_cells(one.result.threshold), *_threshold_cells(one.plain_threshold)]
        for name, one in evaluations
    ]
    return head, rows


def evaluation_record(evaluation: Evaluation, step: int) -> dict[str, Any]:
    """The line of log.jsonl. A figure that the pairs cannot measure is null."""
    result = evaluation.result
    return {
        "kind": "evaluation",
        "step": step,
        "set": evaluation.name,
        "accuracy": result.accuracy,
        "std": result.std,
        "threshold": result.threshold,
        "auc": _number(result.auc),
        "eer": _number(result.eer),
        "tar": {repr(far): _number(rate) for far, rate in result.tar.items()},
        "tar_std": {repr(far): _number(std) for far, std in result.tar_std.items()},
        "xnorm": evaluation.xnorm,
    }


def save_evaluation(
    folder: Path, evaluation: Evaluation, step: int, *, method: str | None = None, protocol: str = PROTOCOL
) -> Path:
    """Write folder/SET.json and folder/SET.npz, each atomically; an older evaluation of the set is replaced.

    Args:
        folder: the run's `evaluation` folder; made when missing.
        evaluation: what to write.
        step: optimiser steps done.
        method: None for the run's network; for a baseline its name, as in "raw_pixels": SET.raw_pixels.json.
        protocol: in words.

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: the name of the set or of the method cannot be part of a file name.
    """
    stem = file_stem(evaluation.name) + (f".{file_stem(method)}" if method else "")
    result = evaluation.result
    with atomic_write(Path(folder) / f"{stem}.npz") as file:
        np.savez(file, distances=result.distances, issame=result.issame, fpr=result.roc.fpr, tpr=result.roc.tpr)
    record = evaluation_record(evaluation, step)
    del record["kind"]
    path = Path(folder) / f"{stem}.json"
    write_json(
        path,
        {
            **record,
            "method": method,
            "protocol": protocol,
            "pairs": len(result.issame),
            "same_pairs": int(result.issame.sum()),
            "folds": len(result.fold_accuracies),
            "fold_accuracies": result.fold_accuracies.tolist(),
            "fold_thresholds": result.fold_thresholds.tolist(),
            "zero_embeddings": result.zero_embeddings,
            "plain_threshold": evaluation.plain_threshold,
        },
    )
    return path


def load_evaluation(path: Path) -> SavedEvaluation:
    """Read what `save_evaluation` wrote.

    Args:
        path: SET.json; SET.npz lies beside it.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, or the two do not belong together.

    The figures are computed again from the distances and compared with the JSON file. This finds an edited file, and a
    kill between the two writes.
    """
    record = read_json(path, "an evaluation written by save_evaluation")
    try:
        name, step, method = record["set"], record["step"], record["method"]
        pairs, folds, zeros = record["pairs"], record["folds"], record["zero_embeddings"]
        fars = [float(far) for far in record["tar"]]
        xnorm = float(record["xnorm"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: expected an evaluation written by save_evaluation ({error!r})") from None
    counts = (step, pairs, folds, zeros)
    if not all(type(count) is int and count >= 0 for count in counts) or not 0 <= xnorm < math.inf:
        raise ValueError(f"{path}: expected counts and a finite norm, got {counts} and {xnorm}")
    if not isinstance(name, str) or not isinstance(method, str | None):
        raise ValueError(f"{path}: expected the names of a set and of a method, got {name!r} and {method!r}")

    plain = record.get("plain_threshold")  # older files have none
    if plain is not None and not (isinstance(plain, float) and 0 <= plain <= 4):
        raise ValueError(f"{path}: expected plain_threshold from 0 to 4, or null, got {plain!r}")

    beside = path.with_suffix(".npz")
    distances, issame = read_arrays(beside, ("distances", "issame")).values()
    if (distances.shape, distances.dtype, issame.shape, issame.dtype) != ((pairs,), np.float64, (pairs,), np.bool_):
        raise ValueError(
            f"{beside}: expected distances ({pairs},) float64 and issame ({pairs},) bool, "
            f"got {distances.shape} {distances.dtype} and {issame.shape} {issame.dtype}"
        )
    try:
        result = verify_distances(distances, issame, folds=folds, fars=fars, zero_embeddings=zeros)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    evaluation = Evaluation(name, result, xnorm, plain)
    again = evaluation_record(evaluation, step)
    for figure in ("accuracy", "std", "threshold", "auc", "eer"):
        if not _agree(record.get(figure), again[figure]):
            raise ValueError(
                f"{path}: {figure} is {record.get(figure)!r} here and {again[figure]!r} by the distances in "
                f"{beside.name}; the two files are not of one evaluation: evaluate again"
            )
    return SavedEvaluation(evaluation, step, method)


def _with_std(rate: float, std: float) -> str:
    return f"{100 * rate:.2f} ± {100 * std:.2f} %" if math.isfinite(rate) else NOTHING


def _threshold_cells(distance: float | None) -> list[str]:
    return [NOTHING, NOTHING] if distance is None else [fixed(distance, 4), fixed(cosine_of(distance), 4)]


def _agree(stored: Any, computed: float | None) -> bool:
    if computed is None or not isinstance(stored, float):
        return stored is None and computed is None
    return math.isclose(stored, computed, abs_tol=1e-9)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
