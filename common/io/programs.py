"""Other programs that are asked for a line or two."""

import subprocess
from pathlib import Path

PATIENCE = 60  # seconds; on a disk that is busy, git takes many


def output_of(command: list[str], folder: Path | None = None) -> str:
    """What a program prints, run in `folder`.

    A program that takes too long gets SIGTERM. When a child of it is killed, Jittor ends the whole process.

    Raises:
        OSError, subprocess.SubprocessError: it is not there, failed, or took too long.
    """
    with subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return output
