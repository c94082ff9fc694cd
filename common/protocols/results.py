"""Evaluations on IJB-B, IJB-C and MegaFace: as text and as records for JSON."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from common.io.text import NOTHING, text_table
from common.protocols.distractors import DistractorSearch
from common.protocols.identification import Comparison, OperatingPoint
from common.protocols.ijb import GallerySearches
from common.protocols.templates import Pooling

CMC_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True, eq=False)
class IjbEvaluation:
    """Figures on IJB-B or IJB-C."""

    name: str  # of the set
    source: str  # what was evaluated
    pooling: Pooling  # the switches
    images: int  # in the set
    templates: int  # in the set
    zero_templates: int  # of these, how many are zero vectors
    comparison: Comparison | None  # 1:1; None where its list is missing
    searches: GallerySearches | None  # 1:N; None where its lists are missing


@dataclass(frozen=True, eq=False)
class MegafaceEvaluation:
    """Figures on MegaFace."""

    size: int  # of the list of distractors
    number: int  # of the list
    source: str  # what was evaluated
    flip: bool | None  # whether embeddings of mirror images were added; None for feature files, which do not say
    noisy: str  # what was done with noisy faces: "remove", "centre" or "keep"
    noisy_probes: int  # how many
    noisy_distractors: int  # how many; left out unless kept
    found: DistractorSearch  # the figures


def ijb_text(evaluation: IjbEvaluation) -> str:
    """For people."""
    pooling = evaluation.pooling
    lines = [
        f"{evaluation.name}: {evaluation.source}",
        f"{evaluation.images} images, {evaluation.templates} templates; flip {pooling.flip}, "
        f"norm {'kept' if pooling.keep_norm else 'removed'}, "
        f"detector score {'used' if pooling.detector_score else 'not used'}",
    ]
    if evaluation.zero_templates:
        lines.append(f"{evaluation.zero_templates} templates are zero vectors")
    if (comparison := evaluation.comparison) is not None:
        lines += ["", f"1:1, {comparison.pairs} pairs, {comparison.same_pairs} of one person", ""]
        lines.append(_comparison_table(comparison))
    if (searches := evaluation.searches) is not None:
        lines += ["", f"1:N, {searches.probes} probes", "", _searches_table(searches)]
    return "\n".join(lines)


def ijb_record(evaluation: IjbEvaluation) -> dict[str, Any]:
    """For JSON."""
    return {
        "protocol": "templates pooled and compared as in insightface's evaluation, see docs/protocols.md",
        "set": evaluation.name,
        "source": evaluation.source,
        **vars(evaluation.pooling),
        "images": evaluation.images,
        "templates": evaluation.templates,
        "zero_templates": evaluation.zero_templates,
        "one_to_one": _json(evaluation.comparison),
        "one_to_n": _json(evaluation.searches),
    }


def megaface_text(evaluation: MegafaceEvaluation) -> str:
    """For people."""
    found = evaluation.found
    lines = [
        f"megaface: {evaluation.source}",
        f"{found.probes} probes of {found.subjects} people, {found.mates} searches, {found.distractors} distractors",
    ]
    if evaluation.noisy != "keep":
        done = "left out" if evaluation.noisy == "remove" else "replaced by their person's centre"
        lines.append(
            f"noisy: {evaluation.noisy_probes} probes {done}, {evaluation.noisy_distractors} distractors left out"
        )
    if found.lone_probes:
        lines.append(f"{found.lone_probes} probes have no other photo of their person: they meet strangers only")
    return "\n".join([*lines, "", _distractor_table(found)])


def megaface_record(evaluation: MegafaceEvaluation) -> dict[str, Any]:
    """For JSON."""
    found = evaluation.found
    return {
        "protocol": "each photo has to find each other one of its person among the distractors, see docs/protocols.md",
        "set": f"megaface, {evaluation.size} distractors, list {evaluation.number}",
        "source": evaluation.source,
        "flip": evaluation.flip,
        "noisy": evaluation.noisy,
        "noisy_probes": evaluation.noisy_probes,
        "noisy_distractors": evaluation.noisy_distractors,
        "probes": found.probes,
        "lone_probes": found.lone_probes,
        "subjects": found.subjects,
        "searches": found.mates,
        "distractors": found.distractors,
        "cmc": _json({k: found.rank(k) for k in CMC_RANKS}),
        "tar": _json(found.tar),
    }


def _comparison_table(comparison: Comparison) -> str:
    """1:1: a column a false accept rate; rates in percent."""
    points = comparison.tar
    rows = [
        ["TAR %", *(_percent(point.rate) for point in points.values())],
        ["FAR reached", *(_two_digits(point.false_rate) for point in points.values())],
    ]
    return text_table(["FAR", *(f"{far:g}" for far in points)], rows)


def _searches_table(searches: GallerySearches) -> str:
    """1:N: a line a gallery; rates in percent."""
    fpirs = list(dict.fromkeys(fpir for found in searches.galleries.values() for fpir in found.tpir))
    head = ["gallery", "templates", "mated", *(f"rank-{k}" for k in searches.ranks), *(f"TPIR@{f:g}" for f in fpirs)]
    rows = []
    for name, found in searches.galleries.items():
        rates = [found.tpir[fpir].rate if fpir in found.tpir else math.nan for fpir in fpirs]
        rows.append([name, str(found.gallery), str(found.mated), *map(_percent, [*found.ranks.values(), *rates])])
    mean = [searches.tpir.get(fpir, math.nan) for fpir in fpirs]
    total = str(sum(found.mated for found in searches.galleries.values()))
    rows.append(["mean", NOTHING, total, *map(_percent, [*searches.ranks.values(), *mean])])
    merged = searches.merged
    blank = [NOTHING] * len(fpirs)
    rows.append(["merged", str(merged.gallery), str(merged.mated), *map(_percent, merged.ranks.values()), *blank])
    return text_table(head, rows)


def _distractor_table(found: DistractorSearch) -> str:
    """Among distractors: rank-k and TAR at FAR, in percent."""
    figures = {f"rank-{k}": found.rank(k) for k in (1, 10, 100)}
    figures |= {f"TAR@{far:g}": point.rate for far, point in found.tar.items()}
    return text_table(list(figures), [[_percent(rate) for rate in figures.values()]])


def _json(value: Any) -> Any:
    """Figures as JSON, which has neither NaN nor infinity; an `OperatingPoint` and each dataclass become an object."""
    if isinstance(value, OperatingPoint):
        value = value._asdict()
    elif dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _two_digits(rate: float) -> str:
    return f"{rate:.2g}" if math.isfinite(rate) else NOTHING


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f}" if math.isfinite(rate) else NOTHING
