"""What the data sets share: pairs in the order that the protocol wants, and LFW's list of pairs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Two images by what their set calls them."""

    first: str
    second: str
    is_same: bool


def alternating(same: Iterable[Pair], different: Iterable[Pair]) -> list[Pair]:
    """Same and different in turn, so that contiguous folds are balanced; as many of each."""
    return [pair for both in zip(same, different, strict=True) for pair in both]


def all_and_sampled_pairs(people: dict[str, list[str]], seed: int) -> list[Pair]:
    """All pairs of images of one person, and as many of two people, drawn by seed, each at most once; alternating.

    Args:
        people: image names of each person; at least two people.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    same = [Pair(a, b, True) for images in people.values() for i, a in enumerate(images) for b in images[i + 1 :]]
    names = list(people)
    different: dict[Pair, None] = {}
    while len(different) < len(same):
        one, other = sorted(random.choice(len(names), 2, replace=False))
        a, b = (people[names[person]][random.integers(len(people[names[person]]))] for person in (one, other))
        different[Pair(a, b, False)] = None
    return alternating([same[i] for i in random.permutation(len(same))], different)


def read_pairs(path: Path) -> list[list[Pair]]:
    """Folds of a pairs file in LFW's format; images are called "Person/Person_0001".

    Format: a line "folds pairs" (or "pairs" alone: one fold), then in each fold that many lines "person i j" (same) and
    that many lines "person1 i person2 j" (different), separated by tabs.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that is none of these; named by its number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a pairs file, found none")
    lines = path.read_text("utf-8").splitlines()
    header = lines[0].split() if lines else []
    if len(header) not in (1, 2) or not all(field.isdecimal() for field in header):
        raise ValueError(f'{path} line 1: expected "folds pairs", got {lines[0][:100] if lines else ""!r}')
    folds, count = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
    if len(lines) - 1 != 2 * folds * count:
        raise ValueError(f"{path}: expected {folds} x 2 x {count} pairs after line 1, got {len(lines) - 1} lines")
    numbered = enumerate(lines[1:], 2)
    return [
        [_pair(path, *next(numbered), is_same) for is_same in (True, False) for _ in range(count)] for _ in range(folds)
    ]


def in_turn(fold: list[Pair]) -> list[Pair]:
    """A fold of `read_pairs` (same pairs first) with same and different in turn."""
    half = len(fold) // 2
    return alternating(fold[:half], fold[half:])


def people_of(pairs: Iterable[Pair]) -> Iterator[str]:
    """The people who appear in pairs of images called "Person/Person_0001"."""
    for pair in pairs:
        yield pair.first.split("/")[0]
        yield pair.second.split("/")[0]


def _pair(path: Path, number: int, line: str, is_same: bool) -> Pair:
    fields = line.split("\t")
    numbers = fields[1:] if is_same else fields[1::2]
    if len(fields) != (3 if is_same else 4) or not all(field.strip().isdecimal() for field in numbers):
        expected = "person, i, j" if is_same else "person, i, person, j"
        raise ValueError(f"{path} line {number}: expected {expected}, separated by tabs, got {line[:100]!r}")
    people = (fields[0], fields[0] if is_same else fields[2])
    first, second = (f"{person}/{person}_{int(n):04d}" for person, n in zip(people, numbers, strict=True))
    return Pair(first, second, is_same)
