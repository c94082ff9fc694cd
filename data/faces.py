"""Pairs of images: how they are drawn, ordered, read from LFW's list and written as an evaluation set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.datasets.pair_sets import write_pair_set
from common.io.files import is_inside
from common.io.progress import tracked
from common.io.rows import cells, each_row, path_and_numbers


class Pair(NamedTuple):
    """Two images by name, and whether they show one person."""

    first: str
    second: str
    is_same: bool


def alternating(same: Iterable[Pair], different: Iterable[Pair]) -> list[Pair]:
    """Alternate same and different pairs, so that contiguous folds are balanced; there must be as many of each."""
    return [pair for both in zip(same, different, strict=True) for pair in both]


def all_and_sampled_pairs(people: dict[str, list[str]], seed: int, most: int | None = None) -> list[Pair]:
    """Take all pairs of one person, and draw as many of two people, each at most once; the two kinds alternate.

    Args:
        people: image names of each person; at least two people.
        seed: seed of the draw.
        most: number of pairs of both kinds, at most; none: all. The pairs of one person are then drawn, too.

    There are fewer pairs of one person than all if there are not as many of two.
    """
    random = np.random.default_rng(seed)
    same = [Pair(a, b, True) for images in people.values() for i, a in enumerate(images) for b in images[i + 1 :]]
    names = list(people)
    counts = np.array([len(images) for images in people.values()])
    of_two = (counts.sum() ** 2 - (counts**2).sum()) // 2
    half = min(len(same), int(of_two), *([] if most is None else [most // 2]))
    different: dict[Pair, None] = {}
    while len(different) < half:
        one, other = sorted(random.choice(len(names), 2, replace=False))
        a, b = (people[names[person]][random.integers(len(people[names[person]]))] for person in (one, other))
        different[Pair(a, b, False)] = None
    return alternating([same[i] for i in random.permutation(len(same))[:half]], different)


def read_pairs(path: Path) -> list[list[Pair]]:
    """Read the folds of a pairs file in LFW's format; images are called "Person/Person_0001".

    The first line is "folds pairs", or "pairs" for one fold. Each fold then has as many lines "person i j" (same) and
    as many lines "person1 i person2 j" (different), separated by tabs.

    A file whose first line has three fields is a list of paths: "path path 1" (same) or "path path 0" (different) a
    line, separated by commas, tabs or spaces, perhaps with a line of names first. It is one fold, in its order.

    A file whose first line is "path 0" or "path 1" is CPLFW's: two such lines a pair, with the same number. It is one
    fold, in its order, which is that of its ten folds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another form; the message gives its number.
    """
    rows = list(each_row(path, "a pairs file"))
    first = rows[0][1] if rows else ""
    header = cells(first)
    if len(header) == 3:
        return [_pairs_of_paths(path, rows)]
    if len(header) == 2 and header[1] in ("0", "1") and not header[0].isdecimal():
        return [_pairs_in_two_lines(path, rows)]
    if len(header) not in (1, 2) or not all(_is_number(field) and int(field) > 0 for field in header):
        raise ValueError(f'{path} line 1: expected "folds pairs", got {first[:100]!r}')
    folds, count = (1, int(header[0])) if len(header) == 1 else (int(header[0]), int(header[1]))
    if len(rows) - 1 != 2 * folds * count:
        raise ValueError(f"{path}: expected {folds} x 2 x {count} pairs after line 1, got {len(rows) - 1} lines")
    numbered = iter(rows[1:])
    return [
        [_pair(path, *next(numbered), is_same) for is_same in (True, False) for _ in range(count)] for _ in range(folds)
    ]


def in_turn(fold: list[Pair]) -> list[Pair]:
    """Alternate the pairs of a fold of `read_pairs`, which has the same pairs first."""
    half = len(fold) // 2
    return alternating(fold[:half], fold[half:])


def people_of(pairs: Iterable[Pair]) -> Iterator[str]:
    """Name the people in pairs of images that are called "Person/Person_0001"; a person can come more than once."""
    for pair in pairs:
        yield pair.first.split("/")[0]
        yield pair.second.split("/")[0]


def write_pairs(path: Path, pairs: Sequence[Pair], read: Callable[[str], bytes]) -> None:
    """Write an evaluation set (NAME.bin) of these pairs; `read` returns the encoded image of a name."""
    images = (read(name) for pair in tracked(pairs, path.stem, "pairs") for name in (pair.first, pair.second))
    write_pair_set(path, images, [pair.is_same for pair in pairs])


def _pair(path: Path, number: int, line: str, is_same: bool) -> Pair:
    fields = cells(line)
    numbers = fields[1:] if is_same else fields[1::2]
    if len(fields) != (3 if is_same else 4) or not all(map(_is_number, numbers)):
        expected = "person, i, j" if is_same else "person, i, person, j"
        raise ValueError(f"{path} line {number}: expected {expected}, separated by tabs, got {line[:100]!r}")
    people = (fields[0], fields[0] if is_same else fields[2])
    if not all(map(is_inside, people)):
        raise ValueError(f"{path} line {number}: expected names of people, got {line[:100]!r}")
    first, second = (f"{person}/{person}_{int(n):04d}" for person, n in zip(people, numbers, strict=True))
    return Pair(first, second, is_same)


def _pairs_of_paths(path: Path, rows: list[tuple[int, str]]) -> list[Pair]:
    has_head = cells(rows[0][1])[2] not in ("0", "1")
    pairs = []
    for number, line in rows[has_head:]:
        fields = cells(line)
        if len(fields) != 3 or fields[2] not in ("0", "1") or not (is_inside(fields[0]) and is_inside(fields[1])):
            raise ValueError(f"{path} line {number}: expected path, path below the folder, 0 or 1, got {line[:100]!r}")
        pairs.append(Pair(fields[0], fields[1], fields[2] == "1"))
    if not pairs:
        raise ValueError(f"{path}: expected lines of path, path, 0 or 1, found none")
    return pairs


def _pairs_in_two_lines(path: Path, rows: list[tuple[int, str]]) -> list[Pair]:
    if len(rows) % 2:
        raise ValueError(f"{path}: expected two lines a pair, got {len(rows)} lines")
    pairs = []
    for place in range(0, len(rows), 2):
        (first, is_same), (second, again) = (_of_cplfw(path, *row) for row in rows[place : place + 2])
        if is_same != again:
            raise ValueError(f"{path} line {rows[place + 1][0]}: expected {is_same} as in the line before, got {again}")
        pairs.append(Pair(first, second, is_same == "1"))
    return pairs


def _of_cplfw(path: Path, number: int, line: str) -> tuple[str, str]:
    name, (is_same,) = path_and_numbers(line, 1) or ("", [""])
    if is_same not in ("0", "1") or not is_inside(name):
        raise ValueError(f"{path} line {number}: expected a path below the folder and 0 or 1, got {line[:100]!r}")
    return name, is_same


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdecimal() and len(field) < 10
