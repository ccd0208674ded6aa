"""A TCP port that only this machine can reach, for metrics: a Prometheus server cannot ask a Unix socket."""

from __future__ import annotations

import errno
import socket
from typing import Final

from sigd.daemon.config.address import Loopback
from sigd.daemon.errors import MissingDependency

BACKLOG: Final = 16


def listen_loopback(place: Loopback) -> socket.socket:
    """A listening socket, which the server closes.

    Raises:
        MissingDependency: the port is taken, or there is no such address here.
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


def _lacks(place: Loopback, error: OSError) -> MissingDependency:
    hint = {
        errno.EADDRINUSE: "another process has it (another daemon?): choose another port",
        errno.EACCES: "ports below 1024 need a right: choose another port",
        errno.EAFNOSUPPORT: "the unit of systemd forbids it: sigd install-service --metrics allows it",
    }.get(error.errno or 0, "choose another address with metrics_listen")
    return MissingDependency(f"metrics cannot be served on {place}: {error.strerror}; {hint}")
