"""IJB-B and IJB-C in the layout of insightface's evaluation: ROOT/meta and ROOT/loose_crop (docs/protocols.md).

NAME is ijbb or ijbc. Images are loose crops with five landmarks each, to be aligned; templates are lists of images.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.io.rows import cells, each_row
from common.protocols.identification import FPIRS, RANKS, Search, search
from common.protocols.templates import Templates, template_rows

GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
LANDMARKS = 5
_PAIRS_AT_ONCE = 200_000
SEPARATORS = ',;"'  # of spreadsheets, in place of spaces
_TO_SPACES = str.maketrans(SEPARATORS, "   ")
_PAIR = re.compile(r"\s*\d+\s+\d+\s+[01]\s*")


@dataclass(frozen=True, eq=False)
class Faces:
    """The images of a set, N of them, in the order of its list files."""

    names: tuple[str, ...]  # file names in loose_crop
    landmarks: np.ndarray  # (N, 5, 2) float32, pixels of the loose crop, x and y: eyes, nose, mouth corners
    detector_scores: np.ndarray  # (N,) float32
    template_ids: np.ndarray  # (N,) int64
    media_ids: np.ndarray  # (N,) int64: images of one video share theirs


class TemplatePairs(NamedTuple):
    """Pairs to compare: template ids (P,) int32 each, and (P,) bool."""

    first: np.ndarray
    second: np.ndarray
    issame: np.ndarray


class TemplateSubjects(NamedTuple):
    """Templates and whom they show: (T,) int64 each, template ids increasing."""

    templates: np.ndarray
    subjects: np.ndarray


@dataclass(frozen=True, eq=False)
class GallerySearches:
    """1:N figures of a set, in the order of the record."""

    probes: int  # templates searched for
    ranks: dict[int, float]  # by k, over single galleries: mates among the k best, divided by all mated probes
    tpir: dict[float, float]  # by FPIR, the mean of the two galleries' rates; empty where one has none
    galleries: dict[str, Search]  # by name, against each of the two galleries; together they have every subject
    merged: Search  # the search against both at once, as in insightface's ijb_1n.py


def layout(root: Path, name: str) -> dict[str, tuple[Path, str]]:
    """The files of a set by their part in it: where each lies and what it holds.

    Raises:
        ValueError: `name` is neither ijbb nor ijbc.
    """
    if name not in GALLERIES:
        raise ValueError(f"expected one of {', '.join(GALLERIES)}, got {name!r}")
    meta = Path(root) / "meta"
    subjects = "a header, then TEMPLATE_ID,SUBJECT_ID,... a line"
    faces = "a line an image: file name, x and y of 5 landmarks, detector score"
    return {
        "media": (meta / f"{name}_face_tid_mid.txt", "a line an image: file name, template id, media id"),
        "faces": (meta / f"{name}_name_5pts_score.txt", faces),
        "pairs": (meta / f"{name}_template_pair_label.txt", "a line a pair: two template ids, 1 or 0"),
        "probes": (meta / f"{name}_1N_probe_mixed.csv", subjects),
        **{gallery: (meta / f"{name}_1N_gallery_{gallery}.csv", subjects) for gallery in GALLERIES[name]},
    }


def missing_files(root: Path, name: str) -> dict[str, str]:
    """By its part in the set, each file that is not there, with what it should hold."""
    files = layout(root, name).items()
    return {part: f"expected {path} ({holds})" for part, (path, holds) in files if not path.is_file()}


def read_faces(root: Path, name: str) -> Faces:
    """Read the two lists of images.

    Raises:
        FileNotFoundError: a list is missing; the message says what it should hold.
        ValueError: a damaged line (named), lists of different length or of other images, or no image.
    """
    media_path, faces_path = _find(root, name, "media"), _find(root, name, "faces")
    media = _lines(media_path, 3)
    faces = _lines(faces_path, 2 + 2 * LANDMARKS)
    if len(media) != len(faces) or not media:
        raise ValueError(f"{faces_path}: expected the {len(media)} images of {media_path.name}, got {len(faces)}")
    for (_, one), (number, other) in zip(media, faces, strict=True):
        if one[0] != other[0] or Path(one[0]).name != one[0]:
            raise ValueError(
                f"{faces_path}, line {number}: expected the file name of {media_path.name}, {one[0]!r}, "
                f"without folders, got {other[0]!r}"
            )
    numbers = _numbers(faces_path, faces, np.float32)
    ids = _numbers(media_path, media, np.int64)
    return Faces(
        names=tuple(row[0] for _, row in media),
        landmarks=numbers[:, :-1].reshape(-1, LANDMARKS, 2),
        detector_scores=numbers[:, -1].copy(),
        template_ids=ids[:, 0].copy(),
        media_ids=ids[:, 1].copy(),
    )


def read_pairs(root: Path, name: str) -> TemplatePairs:
    """Read the pairs of the 1:1 protocol, in blocks: IJB-C has 15.7 million.

    Raises:
        FileNotFoundError: the list is missing; the message says what it should hold.
        ValueError: a damaged line, a label other than 0 and 1, or no pair of one kind.
    """
    path = _find(root, name, "pairs")
    blocks = []
    rows = each_row(path, "pairs of templates")
    while numbered := list(islice(rows, _PAIRS_AT_ONCE)):
        lines = [line for _, line in numbered]
        if any(mark in lines[0] for mark in SEPARATORS):
            lines = [line.translate(_TO_SPACES) for line in lines]
        try:
            block = np.loadtxt(lines, np.int64, comments=None, ndmin=2)
        except ValueError:
            block = np.empty((0, 0), np.int64)
        if block.shape != (len(lines), 3):
            wrong_line = next((i for i, line in enumerate(lines) if not _PAIR.fullmatch(line)), 0)
            number, line = numbered[wrong_line]
            raise ValueError(f"{path}, line {number}: expected 3 whole numbers, got {line.strip()!r}")
        wrong = np.flatnonzero((block[:, 2] < 0) | (block[:, 2] > 1) | (np.abs(block[:, :2]) >= 2**31).any(axis=1))
        if wrong.size:
            number, pair = numbered[wrong[0]][0], block[wrong[0]]
            raise ValueError(f"{path}, line {number}: expected two template ids and 1 or 0, got {pair}")
        blocks.append(block.astype(np.int32))
    if not blocks:
        raise ValueError(f"{path}: is empty; expected pairs of templates")
    pairs = np.concatenate(blocks)
    issame = pairs[:, 2] == 1
    if issame.all() or not issame.any():
        raise ValueError(f"{path}: expected pairs of one person and of two, got {issame.sum()} and {(~issame).sum()}")
    return TemplatePairs(pairs[:, 0].copy(), pairs[:, 1].copy(), issame)


def read_template_subjects(root: Path, name: str, part: str) -> TemplateSubjects:
    """Read a list of templates and their subjects of the 1:N protocol.

    Args:
        root: folder of the set.
        name: ijbb or ijbc.
        part: "probes", or one of GALLERIES[name].

    Raises:
        FileNotFoundError: the list is missing; the message says what it should hold.
        ValueError: no header, a damaged line, a template of two subjects, or no template.

    A template has a line for each of its images; only the first two columns are read.
    """
    path = _find(root, name, part)
    subject_of: dict[int, int] = {}
    rows = each_row(path, "a list of templates and subjects")
    for number, line in rows:
        row = cells(line)
        if number == 1:
            if row and row[0].lstrip("-").isdigit():
                raise ValueError(f"{path}: expected a header in the first line, got {','.join(row[:2])}")
            continue
        try:
            template, subject = int(row[0]), int(row[1])
            if max(abs(template), abs(subject)) >= 2**63:
                raise ValueError
        except (ValueError, IndexError):
            raise ValueError(f"{path}, line {number}: expected TEMPLATE_ID,SUBJECT_ID,..., got {row[:2]}") from None
        if subject_of.setdefault(template, subject) != subject:
            raise ValueError(
                f"{path}, line {number}: template {template} is of subject {subject_of[template]} before, "
                f"and of {subject} here"
            )
    if not subject_of:
        raise ValueError(f"{path}: holds no template")
    templates, subjects = zip(*sorted(subject_of.items()), strict=True)
    return TemplateSubjects(np.array(templates, np.int64), np.array(subjects, np.int64))


def read_search_lists(root: Path, name: str) -> dict[str, TemplateSubjects]:
    """The lists of the 1:N protocol: "probes", and each of GALLERIES[name].

    Raises:
        FileNotFoundError, ValueError: as `read_template_subjects`, or a subject has two templates in the galleries.
    """
    lists = {part: read_template_subjects(root, name, part) for part in ("probes", *GALLERIES[name])}
    subjects = np.concatenate([lists[part].subjects for part in GALLERIES[name]])
    different, counts = np.unique(subjects, return_counts=True)
    if len(different) < len(subjects):
        raise ValueError(
            f"{Path(root) / 'meta'}: expected one template a subject in the galleries {', '.join(GALLERIES[name])}, "
            f"got several of subject {different[counts > 1][0]}"
        )
    return lists


def search_galleries(templates: Templates, lists: Mapping[str, TemplateSubjects]) -> GallerySearches:
    """Search the mixed probes of a set in each of its galleries, and in both at once.

    Args:
        templates: all templates of the set, pooled.
        lists: of `read_search_lists`.

    Raises:
        ValueError: as `common.protocols.identification.search`, or a list names a template without images.
    """
    rows = {part: template_rows(templates.ids, listed.templates, part) for part, listed in lists.items()}
    embeddings = {part: templates.embeddings[where] for part, where in rows.items()}
    subjects = {part: listed.subjects for part, listed in lists.items()}
    names = [part for part in lists if part != "probes"]

    def find(*parts: str) -> Search:
        gallery = np.concatenate([embeddings[part] for part in parts])
        whose = np.concatenate([subjects[part] for part in parts])
        return search(embeddings["probes"], subjects["probes"], gallery, whose)

    galleries = {part: find(part) for part in names}
    mated = [found for found in galleries.values() if found.mated]
    total = sum(found.mated for found in mated)
    return GallerySearches(
        galleries=galleries,
        merged=find(*names),
        ranks={k: sum(f.ranks[k] * f.mated for f in mated) / total if mated else math.nan for k in RANKS},
        tpir={
            fpir: float(np.mean([found.tpir[fpir].rate for found in galleries.values()]))
            for fpir in FPIRS
            if all(fpir in found.tpir for found in galleries.values())
        },
        probes=len(embeddings["probes"]),
    )


def _find(root: Path, name: str, part: str) -> Path:
    path, holds = layout(root, name)[part]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is missing; it should hold {holds}")
    return path


def _lines(path: Path, fields: int) -> list[tuple[int, list[str]]]:
    """The cells of each line, with its number."""
    rows = [(number, cells(line)) for number, line in each_row(path, "a line an image")]
    for number, row in rows:
        if len(row) != fields:
            raise ValueError(f"{path}, line {number}: expected {fields} fields, got {len(row)}")
    return rows


def _numbers(path: Path, lines: list[tuple[int, list[str]]], dtype: type) -> np.ndarray:
    rows = [row[1:] for _, row in lines]
    try:
        numbers: np.ndarray = np.array(rows).astype(dtype)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: expected numbers after the file names ({error})") from None
    wrong = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if wrong.size:
        raise ValueError(f"{path}, line {lines[wrong[0]][0]}: expected finite numbers, got {' '.join(rows[wrong[0]])}")
    return numbers
