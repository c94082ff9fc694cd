"""Two hosts in one machine: network namespaces with an address each (Linux, as root)."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import pytest


class Host(NamedTuple):
    """A namespace: what to put before a command, its address, and the name of its network device."""

    prefix: list[str]
    address: str
    device: str


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Skips the test, with a reason, where they cannot be made."""
    names = [f"sface{os.getpid()}{side}" for side in "ab"]
    devices = [f"sf{os.getpid() % 10**8}{side}" for side in "ab"]
    hosts = [
        Host(["ip", "netns", "exec", name], f"10.213.7.{number}", device)
        for number, (name, device) in enumerate(zip(names, devices, strict=True), 1)
    ]
    with ExitStack() as stack:
        try:
            for name in names:
                _ip("netns", "add", name)
                stack.callback(_ip, "netns", "delete", name)
            _ip("link", "add", devices[0], "type", "veth", "peer", "name", devices[1])
            for name, host in zip(names, hosts, strict=True):
                _ip("link", "set", host.device, "netns", name)
                _ip("-n", name, "address", "add", f"{host.address}/24", "dev", host.device)
                _ip("-n", name, "link", "set", host.device, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")
        yield hosts[0], hosts[1]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
