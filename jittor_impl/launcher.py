"""Start a process for each device of one host under mpirun, and end them together."""

import contextlib
import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.backend import how_to_install
from common.ranks import (
    GO_ON,
    INTERRUPTED,
    STOP_SIGNALS,
    TIME_TO_SAVE,
    LostRank,
    Stopped,
    ends_with_launcher,
    share_of_cores,
    stop_signals,
    stopped_or_lost,
)

PATIENCE = float(os.environ.get("SFACE_RANK_TIMEOUT", 600))  # seconds of sleep after which a rank counts as lost
FOLDER = "SFACE_RANKS"  # of the job alone; each rank has a file there, of the signals that it got


def is_launched() -> bool:
    """Whether mpirun, or `launch`, started this process."""
    return "OMPI_COMM_WORLD_SIZE" in os.environ


def needs_launcher(device: str) -> bool:
    """Whether several devices of that name are to have a process each, which `launch` has yet to start."""
    return not is_launched()


def launch(devices: int, arguments: list[str]) -> None:
    """Run `python -m jittor_impl ARGUMENTS` in `devices` processes on this host, under mpirun.

    Raises:
        Stopped: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was saved, unless the message says that none could be.
        LostRank: a process ended early or hangs; named.
        FileNotFoundError: there is no mpirun.
    """
    command, environment = _mpirun(devices)
    with tempfile.TemporaryDirectory(prefix="sface-ranks-") as folder:
        (told := Path(folder, "told")).mkdir()
        environment[FOLDER] = str(told)
        environment["LD_PRELOAD"] = f"{_loopback(Path(folder))}:{environment.get('LD_PRELOAD', '')}".rstrip(":")
        process = subprocess.Popen(
            [*command, __package__, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C would have mpirun end the ranks before they save
            preexec_fn=ends_with_launcher(signal.SIGTERM),
        )
        job = _Job(process, devices, told)
        with stop_signals(job.stop):
            while process.poll() is None:
                job.watch()
                time.sleep(0.1)
    if process.returncode != 0:
        raise job.failure()


class _Job:
    """The ranks of an mpirun on this host, by what the system says of their processes.

    They give no news of their own: while Jittor computes or waits in MPI, it lets no other Python thread run. But to
    wait in MPI takes processor time, so a rank that takes none hangs.
    """

    def __init__(self, mpirun: subprocess.Popen[bytes], count: int, told: Path) -> None:
        self._mpirun, self._count, self._told = mpirun, count, told
        self._ranks: dict[int, int] = {}  # process ids
        self._computed: dict[int, tuple[int | None, float]] = {}  # processor time of each rank, when it last changed
        self._first_lost: int | None = None
        self._hanging: LostRank | None = None
        self._asked = False  # by `stop`; a rank may have been told by somebody else
        self._deadline = math.inf  # when they end that were asked to stop

    def watch(self) -> None:
        """Note which rank ended first; end the job if one hangs, or does not stop when asked to."""
        if len(self._ranks) < self._count:
            self._ranks = _ranks(self._mpirun.pid)
        now, told = time.monotonic(), any({*STOP_SIGNALS} & {*path.read_bytes()} for path in self._told.iterdir())
        for rank, pid in self._ranks.items():
            spent = _processor_time(pid)
            if spent is None and self._first_lost is None:
                self._first_lost = rank
            if rank not in self._computed or self._computed[rank][0] != spent:
                self._computed[rank] = spent, now
            elif now - self._computed[rank][1] > PATIENCE and self._first_lost is None:
                self._first_lost = rank
                self._hanging = LostRank(
                    f"rank {rank} on {os.uname().nodename}, process {pid}, has not computed for {PATIENCE:g} s; {GO_ON}"
                )
                self._send(signal.SIGKILL)
        if told and self._first_lost is None:  # mpirun, too, tells those that lost another one
            self._deadline = min(self._deadline, now + TIME_TO_SAVE)
        if now > self._deadline:
            self._send(signal.SIGKILL)

    def stop(self, *_: object) -> None:
        """Have the ranks stop and save; the second time, end them at once."""
        self._send(signal.SIGKILL if self._asked else signal.SIGTERM)
        self._asked, self._deadline = True, time.monotonic() + TIME_TO_SAVE

    def failure(self) -> Exception:
        """What a job came to whose exit status, that of the first rank to end, is not 0."""
        status = self._mpirun.returncode
        if status > 128 and status != INTERRUPTED:
            status = 128 - status  # as shells report signals
        if status == -signal.SIGKILL and self._deadline < math.inf:
            return Stopped(
                "stopped before the ranks could save, as they cannot while Jittor compiles; start it again to go on "
                "from the last checkpoint"
            )
        return self._hanging or stopped_or_lost({self._first_lost or 0: status})

    def _send(self, number: int) -> None:
        for pid in self._ranks.values() or [self._mpirun.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _mpirun(count: int) -> tuple[list[str], dict[str, str]]:
    """A command that runs the Python module named after it in `count` processes on this host, and its environment."""
    # pip puts it beside this Python
    found = shutil.which("mpirun", path=Path(sys.executable).parent) or shutil.which("mpirun")
    if found is None:
        raise FileNotFoundError(f"devices: several need Open MPI's mpirun; {how_to_install('jittor')}")
    defaults = {
        "OMP_NUM_THREADS": share_of_cores(count),
        "PYTHONUNBUFFERED": "1",  # mpirun reads their output from pipes
        "mpicc_path": str(Path(found).with_name("mpicc")),  # what Jittor compiles its operators against
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    # shared memory between the ranks: what else there is listens on all interfaces, or on those of a network
    one_host = {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "^tcp,ofi,uct", "NCCL_SOCKET_IFNAME": "lo"}
    environment = {name: value for name, value in os.environ.items() if name != "use_mpi"}
    command = [found, "--oversubscribe", "--bind-to", "none", "-np", str(count), sys.executable, "-m"]
    return command, defaults | environment | one_host


def _loopback(folder: Path) -> Path:
    """`loopback.c`, compiled in a folder.

    Raises:
        OSError: it cannot be loaded from there; the loader of programs would only warn, and leave ports open.
    """
    library = folder / "loopback.so"
    compiler = os.environ.get("cc_path") or "g++"  # Jittor's
    source = Path(__file__).with_name("loopback.c")
    subprocess.run([compiler, "-x", "c", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    ctypes.CDLL(str(library))
    return library


def _ranks(mpirun: int) -> dict[int, int]:
    """Process ids of the ranks that it has started so far."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it ended, belongs to someone else or is no rank yet
            if _stat(folder)[1] == str(mpirun):
                name = b"OMPI_COMM_WORLD_RANK="
                (rank,) = (v for v in (folder / "environ").read_bytes().split(b"\0") if v.startswith(name))
                found[int(rank.removeprefix(name))] = int(folder.name)
    return found


def _processor_time(pid: int) -> int | None:
    """Of a process and its children that ended, in ticks; none if it ended."""
    try:
        state, *fields = _stat(Path("/proc", str(pid)))
    except OSError:
        return None
    return None if state in "ZX" else sum(map(int, fields[10:14]))


def _stat(folder: Path) -> list[str]:
    """State, parent and so on of a process: the fields of proc(5) from the third."""
    return (folder / "stat").read_text().rpartition(")")[2].split()
