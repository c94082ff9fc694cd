"""The table of evaluations that a report and a comparison show, with the notes below it."""

import math
from collections.abc import Sequence

from common.evaluation.results import SavedEvaluation
from common.evaluation.verification import VerificationResult
from common.io.text import NOTHING, fixed, percent
from common.reports.page import Block, Paragraph, Table

ABOUT = (
    "Accuracy: mean and population standard deviation over contiguous folds. TAR: mean over the folds. AUC and EER: "
    f"over all pairs. xnorm: mean L2 norm of the raw embeddings. {NOTHING}: not evaluated, or the pairs are too few to "
    "measure the rate."
)


def verification_table(
    names: Sequence[str], entries: Sequence[tuple[Sequence[str], SavedEvaluation | None]]
) -> list[Block]:
    """A line for each entry, and the notes.

    Args:
        names: heads of the first columns.
        entries: the cells of these columns, and the evaluation; None: there is none.
    """
    fars = sorted({far for _, s in entries if s for far in s.evaluation.result.tar}, reverse=True)
    head = [*names, "step", "pairs", "folds", "accuracy ± std", "AUC", "EER"]
    head += [*(f"TAR @ FAR\u00a0{far:g}" for far in fars), "xnorm"]
    rows, notes = [], []
    for cells, s in entries:
        if s is None:
            rows.append([*cells, *[NOTHING] * (len(head) - len(cells))])
            continue
        result = s.evaluation.result
        rates = {far: measured_tar(result, far) for far in fars}
        rows.append(
            [
                *cells,
                NOTHING if s.method else f"{s.step:,}",
                f"{len(result.issame):,}",
                f"{len(result.fold_accuracies)}",
                f"{100 * result.accuracy:.2f} ± {100 * result.std:.2f} %",
                fixed(result.auc, 4),
                percent(result.eer),
                *map(percent, rates.values()),
                f"{s.evaluation.xnorm:.4g}",
            ]
        )
        different = int((~result.issame).sum())
        unsure = [f"{far:g}" for far in sorted(rates) if far in result.tar and math.isnan(rates[far])]
        if unsure and 0 < different < len(result.issame):
            too_few = f"{different:,} different pairs are too few to measure a FAR of {', '.join(unsure)}."
            notes.append(f"{s.evaluation.name}: {too_few}")
        if result.zero_embeddings:
            notes.append(f"{', '.join(cells)}: {result.zero_embeddings:,} embeddings are zero vectors.")
    baselines = frozenset(number for number, (_, s) in enumerate(entries) if s and s.method)
    return [Table(head, rows, baselines), *map(Paragraph, dict.fromkeys([ABOUT, *notes]))]


def measured_tar(result: VerificationResult, far: float) -> float:
    """The true accept rate at a false accept rate; NaN where the different pairs are too few to measure that rate."""
    return result.tar.get(far, math.nan) if (~result.issame).sum() * far >= 1 else math.nan
