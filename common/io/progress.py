"""Progress of long work, on stderr: a bar on a terminal, elsewhere a line every 30 s; and messages beside a bar."""

import sys
from collections.abc import Iterable, Iterator, Sized
from time import monotonic
from typing import Self, TypeVar

from tqdm import tqdm

from common.io.text import printable

SECONDS = 30.0  # between two lines; work that takes less has none

Item = TypeVar("Item")


class ProgressBar:
    """Counts work that is done, from `with` to the end of the block.

    Args:
        what: is done: the name of a set, of a run.
        unit: of what is counted, in the plural.
        total: how many there are; None: nobody knows.
        done: how many of them were done before.
        shown: False: show nothing, as ranks do of which another one shows it.
        delay: seconds before there is a bar; only for work that says nothing meanwhile.
    """

    def __init__(
        self,
        what: str,
        unit: str,
        total: int | None = None,
        *,
        done: int = 0,
        shown: bool = True,
        delay: float = 0.0,
    ) -> None:
        self._what, self._unit, self._of_all = printable(what), unit, "" if total is None else f" of {total}"
        self._done, self._note = done, ""
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=self._what,
            unit=f" {unit}",
            leave=False,
            dynamic_ncols=True,
            smoothing=0.1,
            delay=delay,
            disable=None if shown else True,  # None: unless stderr is a terminal
        )
        self._writes_lines = shown and self._bar.disable
        self._said = monotonic()
        self._since = self._said, done
        self._from = self._said + delay

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def note(self, text: str) -> None:
        """Show a text behind the figures, until the next one."""
        self._note = f"; {printable(text)}"
        self._bar.set_postfix_str(printable(text), refresh=False)

    def update(self, count: int = 1) -> None:
        """So many more are done; 0: only show that time passes."""
        self._done += count
        if self._writes_lines and monotonic() - self._said >= SECONDS:
            self._write_line()
        elif count or monotonic() < self._from:
            self._bar.update(count)
        else:
            self._bar.refresh()

    def unpause(self) -> None:
        """Go on after other work, which is to be no part of the rate."""
        self._bar.unpause()
        self._since = monotonic(), self._done

    def _write_line(self) -> None:
        self._said, (then, before) = monotonic(), self._since
        rate = (self._done - before) / max(self._said - then, 1e-9)
        self._since = self._said, self._done
        speed = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
        figures = f"{self._done}{self._of_all} {self._unit}, {speed} {self._unit}/s"
        print(f"{self._what}: {figures}{self._note}", file=sys.stderr, flush=True)


def tracked(items: Iterable[Item], what: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of a list, or of what has `total` items, and show how many are done.

    >>> sum(tracked([1, 2, 3], "numbers", "numbers"))
    6
    """
    with ProgressBar(what, unit, len(items) if total is None and isinstance(items, Sized) else total) as progress:
        for item in items:
            yield item
            progress.update()


def say(text: str) -> None:
    """Print a line to stdout that no bar is glued to; control characters, which names may hold, are escaped."""
    tqdm.write(printable(text))
