"""How a user stops a run: signals that let the loop end its step and save first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from common import ranks
from common.io.progress import say


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, SIGTERM or SIGHUP sets. The second Ctrl-C raises KeyboardInterrupt."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only it may handle signals
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("stopping after this step; Ctrl-C again to stop at once, without a checkpoint")

    with ranks.stop_signals(ask):
        for number in ranks.STOP_SIGNALS:  # Jittor takes it for a fault if a signal ends its wait for a compilation
            signal.siginterrupt(number, False)
        yield asked
