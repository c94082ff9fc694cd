"""Lists as people write them by hand, and as spreadsheets do: commas, semicolons, tabs or spaces, quotes, empty cells.

The text itself, with its marks and line ends, is `common.io.files.read_lines`.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from common.io.files import MOST_TEXT_BYTES, encoding_of, open_regular, read_lines, require_file

HEADER = re.compile(r'"?path"?\s*[\s,;]')
"""The start of a first line that names the columns."""
_MARKS = re.compile(r'[";,\t]')
_QUOTED = re.compile(r'"[^"]*"')
_NOTHING = ' \t\n,;"'  # an empty row of a spreadsheet holds nothing else


def each_row(path: Path, what: str, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Each line that holds something, with its number from 1 on. A file of any length takes the memory of a line.

    Args:
        path: as in `read_lines`, as are what is read and what is raised.
        what: what the file should be, for error messages.
        errors: "surrogateescape" where names may be in another encoding than UTF-8.
    """
    with open_regular(require_file(path, what)) as file:
        text = io.TextIOWrapper(file, encoding_of(file.peek(2)), errors)
        try:
            for number, line in enumerate(text, 1):
                if "\0" in line:
                    raise UnicodeError
                if line[0] not in _NOTHING or line.strip(_NOTHING):
                    yield number, line.rstrip("\n")
        except UnicodeError:
            read_lines(path, what, MOST_TEXT_BYTES, errors)  # says in which line
            raise


def cells(line: str, separators: str = "\t;, ") -> list[str]:
    """The cells of a line, without empty ones at its end.

    Args:
        line: of a file.
        separators: the first of these that the line has outside of quotes separates its cells; " ": any white space.

    >>> cells('"Smith, Ann/1.jpg",2,,')
    ['Smith, Ann/1.jpg', '2']
    >>> cells("10 300")
    ['10', '300']
    """
    bare = _QUOTED.sub("", line)
    separator = next((mark for mark in separators.strip(" ") if mark in bare), None)
    if '"' in line:
        try:
            found = next(csv.reader([line.strip()], delimiter=separator or " ", skipinitialspace=True), [])
        except csv.Error:
            return [line]
        found = found if separator or " " not in separators else [cell for cell in found if cell]
    elif separator or " " in separators:
        found = line.split(separator)
    else:
        found = [line]
    found = [cell.strip() for cell in found]
    while found and not found[-1]:
        found.pop()
    return found


def path_and_numbers(line: str, count: int) -> tuple[str, list[str]] | None:
    """The path at the start of a line, which may hold separators or be quoted, and the numbers after it.

    Args:
        line: of a list.
        count: how many numbers there are. Where semicolons or tabs separate them, they may have decimal commas.

    Returns:
        None if the line does not end in so many numbers.

    >>> path_and_numbers("Ann Smith/1.jpg 7", 1)
    ('Ann Smith/1.jpg', ['7'])
    >>> path_and_numbers('"Smith, Ann/1.jpg";38,2;"51,7";', 2)
    ('Smith, Ann/1.jpg', ['38.2', '51.7'])
    """
    line = line.strip().rstrip(" \t,;")
    if not _MARKS.search(line):  # as almost all lines of a long list
        path, *numbers = line.rsplit(maxsplit=count)
        return (path, numbers) if len(numbers) == count and all(map(_is_number, numbers)) else None
    for mark in (";", "\t"):
        if mark in line:
            path, *numbers = line.rsplit(mark, count)
            if found := _checked(path, [number.replace(",", ".") for number in numbers], count):
                return found
    ends = [separator.span() for separator in re.finditer(r"[\s,]+", line)][-count:]
    if not ends:
        return None
    return _checked(line[: ends[0][0]], re.split(r"[\s,]+", line[ends[0][1] :]), count)


def _checked(path: str, numbers: list[str], count: int) -> tuple[str, list[str]] | None:
    numbers = [number.strip().strip('"') for number in numbers]
    path = path.strip()
    if len(path) > 1 and path[0] == path[-1] == '"':
        path = path[1:-1].replace('""', '"')
    return (path, numbers) if path and len(numbers) == count and all(map(_is_number, numbers)) else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
