"""The table of evaluations that a report and a comparison show, with the notes below it."""

import math
from collections.abc import Sequence

from common.evaluation.results import SavedEvaluation, figure_table
from common.io.text import NOTHING
from common.reports.page import Block, Paragraph, Table

ABOUT = (
    "Accuracy and TAR: mean and population standard deviation over contiguous folds. AUC and EER: over all pairs. "
    f"xnorm: mean L2 norm of raw embeddings. {NOTHING}: not evaluated, or the pairs are too few to measure the rate."
)


def verification_table(
    names: Sequence[str], entries: Sequence[tuple[Sequence[str], SavedEvaluation | None]]
) -> list[Block]:
    """A line for each entry, and the notes.

    Args:
        names: heads of the first columns.
        entries: the cells of these columns, and the evaluation; None: there is none.
    """
    (_, *head), figures = figure_table(("", s.evaluation if s else None) for _, s in entries)
    rows, notes = [], []
    for (cells, s), (_, *row) in zip(entries, figures, strict=True):
        rows.append([*cells, f"{s.step:,}" if s and not s.method else NOTHING, *row])
        if s is None:
            continue
        result = s.evaluation.result
        different = int((~result.issame).sum())
        unsure = ", ".join(f"{far:g}" for far in sorted(result.tar) if math.isnan(result.tar[far]))
        if unsure and 0 < different < len(result.issame):
            too_few = f"{different:,} different pairs, less those of a fold, are too few to measure a FAR of {unsure}."
            notes.append(f"{s.evaluation.name}: {too_few}")
        if result.zero_embeddings:
            notes.append(f"{', '.join(cells)}: {result.zero_embeddings:,} embeddings are zero vectors.")
    baselines = frozenset(number for number, (_, s) in enumerate(entries) if s and s.method)
    return [Table([*names, "step", *head], rows, baselines), *map(Paragraph, dict.fromkeys([ABOUT, *notes]))]
