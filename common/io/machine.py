"""The machine and the checkout, for records of what was measured."""

import platform
import re
import subprocess
from pathlib import Path

from common.io.programs import output_of


def processor() -> str:
    """Name of the processor, and which of the instructions it has that decide speed and rounding here."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = [name for name in ("avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{name}\b", text)]
    return (found[1] if found else platform.machine()) + (f" ({', '.join(flags)})" if flags else "")


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """Git revision of a checkout, by default this one, with "-dirty" if files differ from it; None outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return output_of(command, folder).strip()
    except (OSError, subprocess.SubprocessError):
        return None
