"""Progress on stderr while a backend answers: a bar on a terminal, else a line now and then."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

GLANCE, PAUSE = 0.2, 15.0  # seconds between looks, and between lines


@contextlib.contextmanager
def shown(backend: str, cases: Sequence[str], target: Path) -> Iterator[None]:
    """Show how many of the cases, in the order in which they are answered, have a file in `target`.

    A backend that compiles its first operators for minutes shows a bar that counts the time, or a line every `PAUSE`.
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
    started = time.monotonic()
    due = started
    with tqdm(total=len(cases), desc=backend, unit="cases", leave=False, dynamic_ncols=True, disable=None) as bar:
        while True:
            left = [name for name in cases if not (target / f"{name}.npz").exists()]
            if left and bar.disable and time.monotonic() >= due:
                place = f"case {len(cases) - len(left) + 1} of {len(cases)}, {left[0]}"
                print(f"{backend}: {place}, {due - started:.0f} s", file=sys.stderr, flush=True)
                due += PAUSE
            elif not bar.disable:
                bar.set_postfix_str(left[0] if left else "", refresh=False)
                bar.update(len(cases) - len(left) - bar.n)
                bar.refresh()
            if ended.wait(GLANCE):
                return
