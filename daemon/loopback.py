"""A TCP port that only this machine can reach, for metrics: a Prometheus server cannot ask a Unix socket."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

from sigd.daemon.errors import EnvironmentLacks, UsageError

PORT_MAX: Final = 65_535
BACKLOG: Final = 16


class Loopback(NamedTuple):
    """An address and a port; port 0 takes any that is free."""

    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


def parse_loopback(text: str) -> Loopback:
    """The address in `text`, as in 127.0.0.1:9464 or [::1]:9464.

    Raises:
        UsageError: it is none, or one that other machines can reach.
    """
    host, _, port = text.rpartition(":")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise UsageError(
            f"metrics_listen {text!r} is no address, expected one such as 127.0.0.1:9464 or [::1]:9464"
        ) from None
    if not port.isascii() or not port.isdecimal() or int(port) > PORT_MAX:
        raise UsageError(f"metrics_listen {text!r}: {port!r} is no port, expected a number up to {PORT_MAX}")
    if not address.is_loopback:
        raise UsageError(
            f"metrics_listen {text!r}: metrics are served on loopback addresses only, such as 127.0.0.1:{port}; let a Prometheus agent on"
            " this machine forward them"
        )
    return Loopback(address, int(port))


def listen_loopback(place: Loopback) -> socket.socket:
    """A listening socket, for whoever serves it to close.

    Raises:
        EnvironmentLacks: the port is taken, or there is no such address here.
    """
    family = socket.AF_INET if place.address.version == 4 else socket.AF_INET6
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise _lacks(place, error) from None
    try:
        # A port that was served a moment ago may be served again at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(place.address), place.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _lacks(place, error) from None
    return listener


def _lacks(place: Loopback, error: OSError) -> EnvironmentLacks:
    hint = {
        errno.EADDRINUSE: "another process has it (another daemon?): choose another port",
        errno.EACCES: "ports below 1024 need a right: choose another port",
        errno.EAFNOSUPPORT: "the unit of systemd forbids it: sigd install-service --metrics allows it",
    }.get(error.errno or 0, "choose another address with metrics_listen")
    return EnvironmentLacks(f"metrics cannot be served on {place}: {error.strerror}; {hint}")
