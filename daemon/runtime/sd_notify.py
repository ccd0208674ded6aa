"""What the daemon tells the service manager: ready, reloading, stopping, alive, and a line for
`systemctl status`.

The protocol is that of sd_notify(3): datagrams of NAME=value lines to the Unix socket that NOTIFY_SOCKET
names. A daemon that was started by hand has no such socket, and then everything here does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Callable, MutableMapping
from time import monotonic_ns
from typing import Final

log = logging.getLogger(__name__)

SEND_TIMEOUT: Final = (1, 0)
"""Seconds and microseconds."""
_ENVIRONMENT: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """The way to the service manager, from `from_environment()`.

    Attributes:
        watchdog_ns: the daemon is ended when it has not called `alive()` for so long; 0 is never.
    """

    def __init__(
        self, address: str = "", watchdog_ns: int = 0, clock: Callable[[], int] = monotonic_ns
    ) -> None:
        """
        Args:
            address: a path, or a name after "@" in the abstract namespace; "" is none.
            clock: CLOCK_MONOTONIC in ns.
        """
        self.watchdog_ns = watchdog_ns
        self._clock = clock
        self._address = b""
        self._socket: socket.socket | None = None
        self._failure_logged = False
        if not address:
            return
        if address[0] not in "/@" or len(address) < 2:
            log.warning(
                "NOTIFY_SOCKET is %r, expected a path or a name after '@': the service manager is told"
                " nothing",
                address,
            )
            return
        encoded = os.fsencode(address)
        self._address = b"\0" + encoded[1:] if address[0] == "@" else encoded
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # What must arrive may wait for a service manager that is busy, but not for one that hangs.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", *SEND_TIMEOUT))

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str], pid: int) -> Notifier:
        """The one that the environment of process `pid` names; its variables are taken out, so that no child
        takes them for its own."""
        address, watchdog_us, watchdog_pid = (environ.pop(name, "") for name in _ENVIRONMENT)
        watched = watchdog_us.isdecimal() and watchdog_pid in ("", str(pid))
        return cls(address, int(watchdog_us) * 1000 if watched else 0)

    def starting(self, status: str) -> None:
        """What takes so long."""
        self._send(f"STATUS={_line(status)}")

    def ready(self, status: str) -> None:
        """The daemon serves, for the first time or again after `reloading()`."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def needs_time(self, timeout_s: float) -> None:
        """What goes on now, a start or a reload, may take so long from now, whatever the unit's own limit
        is."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(timeout_s * 1e6)}")

    def reloading(self, status: str) -> None:
        """A reload begins; `ready()` ends it, whatever its outcome."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._clock() // 1000}\nSTATUS={_line(status)}")

    def stopping(self, status: str, timeout_s: float) -> None:
        """The end begins, and may take up to `timeout_s`, whatever the unit's own limit is."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(timeout_s * 1e6)}\nSTATUS={_line(status)}")

    def alive(self, status: str) -> None:
        """The daemon makes progress. Never waits: where it cannot be sent now, the next one will do."""
        self._send(f"WATCHDOG=1\nSTATUS={_line(status)}", socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Tell no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str, flags: int = 0) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode("utf-8", "replace"), flags, self._address)
            self._failure_logged = False
        except OSError as error:
            if not self._failure_logged:
                self._failure_logged = True
                log.warning("the service manager cannot be told %r: %s", message, error.strerror)


def _line(text: str) -> str:
    """One line of it: a second one would be taken for another message."""
    return " ".join(text.splitlines())
