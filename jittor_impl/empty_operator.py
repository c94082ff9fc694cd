"""python empty_operator.py ASM_TUNER --cc_path=COMPILER SOURCE ... -o LIBRARY: an operator that does nothing.

It stands in for the Python that Jittor starts to compile an operator (`jittor_impl.compiling`). It imports little, as
it is started for each.
"""

import os
import sys
from pathlib import Path

_tuner, compiler, source, *_, library = sys.argv[1:]
text = Path(source).read_text("utf-8")
if "opkey0_array" in source or "set_shape" in text:  # others look at arrays from the host, and at shapes
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
name = text.partition("::jit_run()")[0].split()[-1].rpartition("::")[2]
made = Path(library).with_name(f"{name}.so")
if not made.exists():
    empty = f'extern "C" void _ZN6jittor{len(name)}{name}7jit_runEv() {{}}'
    command = f"'{compiler.removeprefix('--cc_path=')}' -shared -fPIC -x c++ - -o '{made}'"
    if os.system(f"echo '{empty}' | {command}"):
        sys.exit(f"failed: {command}")
Path(library).hardlink_to(made)
