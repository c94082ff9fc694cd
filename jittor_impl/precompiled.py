"""Parse the headers of Jittor's core and of its operators once.

An operator is a C++ file of some fifty lines that includes tens of thousands; most of its compilation is parsing them,
and so is a third of that of the core. GCC uses NAME.h.gch instead of NAME.h if that was made with the same flags, else
it reads NAME.h (https://gcc.gnu.org/onlinedocs/gcc/Precompiled-Headers.html).
"""

import hashlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.io.files import sync_file

# Each operator on the CPU begins with these lines; the macros change the declarations of the headers.
_HEADERS = """\
#define JIT 1
#define JIT_cpu 1
#include <cmath>
#include <assert.h>
#include "var.h"
#include "ops/op_register.h"
#include "fused_op.h"
"""
# What the files of the core include most.
_CORE_HEADERS = """\
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <thread>
#include "var.h"
#include "ops/op_register.h"
#include "opt/pass_manager.h"
#include "executor.h"
#include "var_holder.h"
#include "op_compiler.h"
#include "graph.h"
#include "pyjt/py_converter.h"
"""
_ALONE = ("/op_compiler.cc", "/fp16_op_type.cc")  # of the core; they define again what one of the headers declares


def precompile_headers(jt: Any) -> bool:
    """Make Jittor compile operators with parsed headers. They lie in its cache: 80 MB, made once in 4 seconds.

    Args:
        jt: the module jittor.

    Returns:
        False if the compiler is not GCC or refuses; operators then compile without parsed headers.
    """
    flags = jt.flags.cc_flags
    if jt.flags.cc_type != "g++" or "-include" in flags:  # GCC uses one such file only
        return False
    name = hashlib.sha256((flags + _HEADERS).encode()).hexdigest()[:16]
    header = Path(jt.compiler.cache_path) / f"operators-{name}.h"
    core = Path(sys.modules["jittor_core"].__file__ or "")  # Jittor compiles it after each change of its files
    if not header.exists() or header.stat().st_mtime < core.stat().st_mtime:
        to_compiler = [flag for flag in shlex.split(flags) if not flag.startswith(("-l", "-L", "-Wl", "-shared"))]
        # -g must be the same as for operators: Jittor finds their lines in the assembly with it
        if not _parse(header, _HEADERS, [jt.flags.cc_path, *to_compiler, "-g"]):
            return False
    jt.flags.cc_flags = f'{flags} -include "{header}" '
    return True


def with_parsed_headers(run_commands: Callable[..., None]) -> Callable[..., None]:
    """Wrap `jittor_utils.run_cmds` so that it compiles the core of a Jittor without CUDA with parsed headers.

    The parsed ones go when the core is compiled. Jittor keeps the commands and compiles again when one changes; so a
    core that was compiled with the header keeps it.
    """

    def run(commands: list[str], cache: str, source: str, title: str = "run_cmds") -> None:
        header = Path(cache) / "core.h"
        parsed = header.with_suffix(".h.gch")
        if title == "Compiling jittor_core" and not any("HAS_CUDA" in command for command in commands):
            compiler, _file, *flags = shlex.split(commands[0].partition(" -c -o ")[0])
            if not any(Path(cache).glob("jittor_core*.key")) and "g++" in Path(compiler).name:
                _parse(header, _CORE_HEADERS, [compiler, *flags])
            if header.exists():
                # -w: the headers' own pragmas against warnings are lost
                parsed_too = f' -w -include "{header}" -c -o '
                commands = [
                    command if any(name in command for name in _ALONE) else command.replace(" -c -o ", parsed_too)
                    for command in commands
                ]
        run_commands(commands, cache, source, title)
        parsed.unlink(missing_ok=True)

    return run


def _parse(header: Path, lines: str, command: list[str]) -> bool:
    """Write a header and, beside it, what a compiler's command makes of it; False if the compiler refuses."""
    parsed = header.with_suffix(".h.gch")
    with tempfile.TemporaryDirectory(dir=header.parent) as folder:
        trial_header = Path(folder) / header.name
        trial = trial_header.with_suffix(".h.gch")
        trial_header.write_text(lines, "utf-8")
        make = ["-x", "c++-header", str(trial_header), "-o", str(trial)]
        use = ["-include", str(trial_header), "-Werror=invalid-pch", "-fsyntax-only", "-x", "c++", "/dev/null"]
        if any(subprocess.run(command + rest, capture_output=True, check=False).returncode for rest in (make, use)):
            return False
        sync_file(trial)
        trial.replace(parsed)
        trial_header.replace(header)
    return True
