"""Parse the headers of Jittor's operators once.

An operator is a C++ file of some fifty lines that includes tens of thousands; most of its compilation is parsing them.
GCC uses NAME.h.gch instead of NAME.h if that was made with the same flags, else it reads NAME.h
(https://gcc.gnu.org/onlinedocs/gcc/Precompiled-Headers.html).
"""

import hashlib
import shlex
import subprocess
import sys
import tempfile
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
    cache = Path(jt.compiler.cache_path)
    name = hashlib.sha256((flags + _HEADERS).encode()).hexdigest()[:16]
    header = cache / f"operators-{name}.h"
    parsed = header.with_suffix(".h.gch")
    core = Path(sys.modules["jittor_core"].__file__ or "")  # Jittor compiles it after each change of its files
    if not parsed.exists() or parsed.stat().st_mtime < core.stat().st_mtime:
        to_compiler = [flag for flag in shlex.split(flags) if not flag.startswith(("-l", "-L", "-Wl", "-shared"))]
        # -g must be the same as for operators: Jittor finds their lines in the assembly with it
        command = [jt.flags.cc_path, *to_compiler, "-g"]
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            trial_header = Path(folder) / header.name
            trial = trial_header.with_suffix(".h.gch")
            trial_header.write_text(_HEADERS, "utf-8")
            make = ["-x", "c++-header", str(trial_header), "-o", str(trial)]
            use = ["-include", str(trial_header), "-Werror=invalid-pch", "-fsyntax-only", "-x", "c++", "/dev/null"]
            if any(subprocess.run(command + rest, capture_output=True, check=False).returncode for rest in (make, use)):
                return False
            sync_file(trial)
            trial_header.replace(header)
            trial.replace(parsed)
    jt.flags.cc_flags = f'{flags} -include "{header}" '
    return True
