"""torchrun ... -m benchmarks.scale_worker CASE.json OUT.json: a rank that measures steps of a head.

CASE is {"form", "classes", "batch", "dim", "turns"}. OUT, of rank 0: seconds of the turns, the bytes that loopback
carried for a rank in one step, and the peak memory of the rank with the most.
"""

import importlib
import json
import re
import sys
import time
from pathlib import Path

from common.io.files import write_json
from common.io.memory import host_peak


def main(case_path: str, out: str) -> None:
    case = json.loads(Path(case_path).read_text("utf-8"))
    forms = importlib.import_module("benchmarks.backends.pytorch.sharded_forms")
    ranks = forms.group()
    before = host_peak()
    step = forms.sharded_forms(case["form"], case["classes"], case["batch"], case["dim"])
    step()
    seconds, sent = [], []
    for _ in range(case["turns"]):
        ranks.total(0)
        carried, start = loopback_bytes(), time.perf_counter()
        step()
        ranks.total(0)
        seconds.append(time.perf_counter() - start)
        sent.append((loopback_bytes() - carried) / ranks.count)
    used = [ranks.total(host_peak() - before if rank == ranks.rank else 0) for rank in range(ranks.count)]
    if ranks.rank == 0:
        write_json(Path(out), {**case, "ranks": ranks.count, "seconds": seconds, "sent": sent, "memory": max(used)})


def loopback_bytes() -> int:
    """Bytes that the loopback device has carried since it came up, whoever sent them (Linux)."""
    found = re.search(r"^\s*lo:\s*(\d+)", Path("/proc/net/dev").read_text("ascii"), re.MULTILINE)
    if found is None:
        raise OSError("/proc/net/dev: expected a line of the device lo, found none")
    return int(found[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
