"""Where the processes of a job listen for TCP connections, by what the system says of them."""

import contextlib
import ipaddress
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

LISTEN = "0A"  # the state of a socket that takes connections, in /proc/net/tcp


class Listener(NamedTuple):
    """A socket that takes connections; the command is that of a process that has it."""

    address: str
    port: int
    command: str

    @property
    def is_loopback(self) -> bool:
        address = ipaddress.ip_address(self.address)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback


def seen_until(holds: Callable[[], bool], job: subprocess.Popen[str]) -> set[Listener]:
    """All sockets that the job listened on before something held; many looks, as a rendezvous may be short."""
    found: set[Listener] = set()
    while not holds():
        assert job.poll() is None, f"the job ended with status {job.returncode}"
        found |= listeners(processes_of(job.pid))
        time.sleep(0.1)
    return found | listeners(processes_of(job.pid))


def processes_of(first: int) -> list[int]:
    """The process, all that it started, and what these did."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = [first]
    for pid in found:
        found += children.get(pid, [])
    return found


def listeners(pids: list[int]) -> set[Listener]:
    """What these processes listen on now, in the network that each is in."""
    found = set()
    for pid in pids:
        folder = Path("/proc", str(pid))
        with contextlib.suppress(OSError):  # it has ended
            inodes = _sockets(folder / "fd")
            command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
            for name in ("tcp", "tcp6"):
                rows = (line.split() for line in (folder / "net" / name).read_text().splitlines()[1:])
                for _, local, _, state, *fields in rows:
                    if state == LISTEN and fields[5] in inodes:
                        address, port = local.split(":")
                        found.add(Listener(_address(address), int(port, 16), command))
    return found


def _sockets(folder: Path) -> set[str]:
    inodes = set()
    for link in folder.iterdir():
        with contextlib.suppress(OSError):  # it was closed
            inodes.update(re.findall(r"^socket:\[(\d+)\]$", str(link.readlink())))
    return inodes


def _address(written: str) -> str:
    """An address that the kernel writes in words of 32 bits, each in this machine's order of bytes."""
    words = [bytes.fromhex(written[i : i + 8]) for i in range(0, len(written), 8)]
    return str(ipaddress.ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)))
