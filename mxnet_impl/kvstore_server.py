"""The scheduler or a server of MXNet's distributed kvstore, by DMLC_ROLE: `launcher.launch` runs this file.

MXNet's own, inside of `import mxnet`, unpickles, and so runs, what any process that reaches its port sends as an
optimiser. This one ignores that, and starts in a tenth of the time.
"""

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

ROLES = ("scheduler", "server")


def serve() -> int:
    """Serve until all workers have left; returns the exit status."""
    found = find_spec("mxnet")
    assert found is not None
    assert found.origin is not None
    mxnet, store = ctypes.CDLL(str(Path(found.origin).with_name("libmxnet.so"))), ctypes.c_void_p()
    ignore = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *command: None)
    return mxnet.MXKVStoreCreate(b"dist", ctypes.byref(store)) or mxnet.MXKVStoreRunServer(store, ignore, None)


if __name__ == "__main__":
    sys.exit(serve())
