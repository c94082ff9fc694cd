"""Progress while a backend answers, which tells of itself only by the files that it writes."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.io.progress import ProgressBar

GLANCE = 0.2  # seconds between looks


@contextlib.contextmanager
def shown(backend: str, cases: Sequence[str], target: Path) -> Iterator[None]:
    """Show how many of the cases, in the order in which they are answered, have a file in `target`.

    So one that compiles its first operators for minutes is seen to be at its first case.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(backend, cases, target, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(backend: str, cases: Sequence[str], target: Path, ended: threading.Event) -> None:
    done = 0
    with ProgressBar(backend, "cases", len(cases)) as progress:
        while True:
            left = [name for name in cases if not (target / f"{name}.npz").exists()]
            progress.note(left[0] if left else "")
            progress.update(len(cases) - len(left) - done)
            done = len(cases) - len(left)
            if ended.wait(GLANCE):
                return
