"""Metrics on TCP: addresses of this machine alone, and what is said about others."""

from __future__ import annotations

import errno
import socket

import pytest

from sigd.daemon.admin.loopback import listen_loopback
from sigd.daemon.config.address import parse_loopback
from sigd.daemon.errors import MissingDependency, UsageError


@pytest.mark.parametrize("text", ["127.0.0.1:9464", "127.1.2.3:0", "[::1]:65535"])
def test_addresses_of_this_machine(text: str) -> None:
    assert str(parse_loopback(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.0.0.0:9464", "loopback addresses only, such as 127.0.0.1:9464"),
        ("[::]:9464", "loopback addresses only"),
        ("10.0.0.1:9464", "loopback addresses only"),
        ("[::ffff:10.0.0.1]:9464", "loopback addresses only"),
        ("localhost:9464", "is no address"),
        ("9464", "is no address"),
        (":9464", "is no address"),
        ("127.0.0.1", "is no address"),
        ("127.0.0.1:", "is no port"),
        ("127.0.0.1:http", "is no port"),
        ("127.0.0.1:65536", "is no port"),
        ("127.0.0.1:-1", "is no port"),
        ("127.0.0.1:\u0661", "is no port"),
    ],
)
def test_other_addresses_are_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        parse_loopback(text)
    assert "metrics_listen" in str(refused.value)


def test_listening_and_a_port_that_is_taken() -> None:
    with listen_loopback(parse_loopback("127.0.0.1:0")) as listener:
        place = parse_loopback(f"127.0.0.1:{listener.getsockname()[1]}")
        with socket.create_connection((str(place.address), place.port)):
            pass
        with pytest.raises(MissingDependency, match="another process has it"):
            listen_loopback(place)
    listen_loopback(place).close()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EAFNOSUPPORT, "install-service --metrics"),
        (errno.EACCES, "1024"),
        (errno.EMFILE, "metrics_listen"),
    ],
)
def test_what_a_machine_can_lack(monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    def fail(*_: object) -> socket.socket:
        raise OSError(number, "no")

    monkeypatch.setattr(socket, "socket", fail)
    with pytest.raises(MissingDependency, match=said):
        listen_loopback(parse_loopback("127.0.0.1:9464"))
