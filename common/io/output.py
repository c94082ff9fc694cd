"""Standard streams that go away: closed from the start, a pipe that ends, a terminal that hangs up."""

import atexit
import errno
import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any

ENDED = 128 + signal.SIGPIPE  # what a shell reports for a program whose reader is gone


def prepare(*, goes_on: bool = False) -> None:
    """Call this first in a command. What cannot be printed, as a file name that is no UTF-8, is printed with escapes.

    Args:
        goes_on: when standard output cannot be written any more, go on in silence. Else the command ends with status
            ENDED and without a message if its reader is gone, as Unix tools do, and with an OSError if a disk is full.

    Without standard error every command goes on.
    """
    _Stream.goes_on = goes_on
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _silence(descriptor)  # else the next file that is opened would be taken for the stream, by libraries too
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w")))
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            raw = _Stream(descriptor, "w", closefd=False)
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    raw if stream.write_through else io.BufferedWriter(raw),
                    encoding=stream.encoding,
                    errors="backslashreplace",
                    line_buffering=stream.line_buffering,
                    write_through=stream.write_through,
                ),
            )
            atexit.unregister(_last_words)
            atexit.register(_last_words)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Stream(io.FileIO):
    """Standard output or error. What is written after it went away goes to the null device."""

    goes_on = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            ends = self.fileno() == 1 and not self.goes_on
            if ends and error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
                raise
        _silence(self.fileno())
        if ends:
            raise SystemExit(ENDED)
        return memoryview(data).nbytes


def _silence(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)


def _last_words() -> None:
    """Before Python writes what is left, and would say that it could not; a full disk is left for it to say."""
    with suppress(SystemExit, OSError):
        sys.stdout.flush()
