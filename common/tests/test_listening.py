"""The check of what a job listens on finds what it is to find."""

import os
import socket

import pytest

from common.tests.listening import Listener, _address, listeners


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("0.0.0.0", False),
        ("192.0.2.2", False),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::", False),
        ("::ffff:192.0.2.2", False),
        ("::ffff:0.0.0.0", False),
    ],
)
def test_what_is_loopback(address, is_loopback):
    assert Listener(address, 1, "").is_loopback is is_loopback


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_socket_of_this_process_is_found_while_it_listens(address):
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        assert [x.address for x in listeners([os.getpid()]) if x.port == port] == [address]
    assert not [x for x in listeners([os.getpid()]) if x.port == port]


def test_an_address_of_ipv6_is_read():
    written = b"".join(socket.inet_pton(socket.AF_INET6, "2001:db8::1")[i : i + 4][::-1] for i in range(0, 16, 4))
    assert _address(written.hex().upper()) == "2001:db8::1"
