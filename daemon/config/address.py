"""The address of a TCP port that only this machine can reach, and the units that listen on the paths of
sockets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, NamedTuple

from sigd.daemon.errors import UsageError

PORT_MAX: Final = 65_535
_ADMIN_SUFFIX: Final = ".sock.admin"


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
            f"metrics_listen {text!r}: metrics are served on loopback addresses only, such as"
            f" 127.0.0.1:{port}; let a Prometheus agent on"
            " this machine forward them"
        )
    return Loopback(address, int(port))


def unit_of(path: Path) -> str:
    """The unit of systemd/ that listens on a socket's path.

    >>> unit_of(Path("/run/sigd/sigd.sock")), unit_of(Path("/run/sigd/lob.sock.admin"))
    ('sigd.socket', 'sigd-admin@lob.socket')
    """
    name = "sigd-admin" if path.name.endswith(_ADMIN_SUFFIX) else "sigd"
    instance = path.name.removesuffix(".admin").removesuffix(".sock")
    return f"{name}.socket" if instance == "sigd" else f"{name}@{instance}.socket"
