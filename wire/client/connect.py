"""How a client gets to its Welcome: connect, Hello, and what each failure on the way means."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from sigd.wire.client.handshake import read_welcome
from sigd.wire.errors import (
    ConnectFailed,
    FrameError,
    HelloUnanswered,
    NoSharedMemory,
    ProtocolBroken,
    SessionClosed,
)
from sigd.wire.framer import Framer
from sigd.wire.messages import Hello, Welcome
from sigd.wire.status import Transport

_TIMEVAL: Final = struct.Struct("@ll")
_READ_BYTES: Final = 4096
_DESCRIPTORS: Final = 3
"""What comes with a Welcome that grants shared memory: region, request doorbell, response doorbell."""
_DESCRIPTORS_MAX: Final = 253
"""Linux passes no more with one message. A newer daemon may pass more than this side knows."""


class Granted(NamedTuple):
    """What a handshake ends with.

    Attributes:
        rest: bytes that came behind the Welcome.
        descriptors: those of shared memory, the caller's to close; empty on a stream.
    """

    welcome: Welcome
    rest: bytes
    descriptors: list[int]


def open_connection(path: str, timeout_s: float) -> socket.socket:
    """A connected stream socket. Raises ConnectFailed, with what to do about it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline_s = time.monotonic() + timeout_s
    try:
        # A blocking connect waits for room in the listener's backlog, for this long; a non-blocking one
        # fails.
        if not math.isinf(timeout_s):
            seconds, fraction = divmod(max(timeout_s, 1e-6), 1)
            timeval = _TIMEVAL.pack(int(seconds), int(fraction * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        connection.connect(path)
        while not _connected(connection):
            if time.monotonic() > deadline_s:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            connection.connect(path)
    except OSError as error:
        connection.close()
        raise ConnectFailed(f"cannot connect to {path}: {_explain(error)}") from error
    return connection


def _connected(connection: socket.socket) -> bool:
    """A signal may interrupt connect(), and Python then believes that a Unix socket connects by itself
    meanwhile."""
    try:
        connection.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def _explain(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such socket; start the daemon (sigd serve) or check the path"
    if isinstance(error, ConnectionRefusedError):
        return "no daemon listens on it; start the daemon (sigd serve)"
    if isinstance(error, PermissionError):
        return "permission denied; join the group that owns the socket"
    if isinstance(error, BlockingIOError):
        return "the daemon did not accept the connection in time"
    return str(error)


def shake_hands(connection: socket.socket, hello: Hello, deadline_s: float) -> Granted:
    """Hello out, Welcome in."""
    passed = _Passed()
    try:
        welcome, rest = _exchange(connection, hello, deadline_s, passed)
        if welcome.transport == Transport.SHARED_MEMORY:
            passed.check()
    except BaseException:
        passed.close()
        raise
    return Granted(welcome, rest, passed.descriptors)


def _exchange(
    connection: socket.socket, hello: Hello, deadline_s: float, passed: _Passed
) -> tuple[Welcome, bytes]:
    framer = Framer()
    # Descriptors that were not asked for are not taken in: the kernel closes descriptors that a plain read
    # leaves behind.
    receive = connection.recv_into if hello.transport == Transport.STREAM else passed.receiver(connection)
    try:
        connection.settimeout(_left_s(deadline_s))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # a daemon that is full says so and closes without waiting for Hello: what it said is still to be
            #     read
            connection.sendall(hello.encode())
        while (frame := framer.next_frame()) is None:
            connection.settimeout(_left_s(deadline_s))
            count_bytes = receive(framer.writable())
            if count_bytes == 0:
                raise SessionClosed("the daemon closed the connection before its Welcome")
            framer.arrived(count_bytes)
        return read_welcome(frame, hello), framer.rest()
    except TimeoutError:
        raise HelloUnanswered(
            "the daemon did not answer Hello within the time given: it is stopped, hangs or is busy; sigd"
            " status tells which process it is"
        ) from None
    except OSError as error:
        raise SessionClosed(f"the connection was lost before Welcome: {error}") from error
    except FrameError as error:
        raise ProtocolBroken(f"the daemon answered Hello with no valid frame: {error.reason}") from error


class _Passed:
    """Descriptors that come with bytes."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self._truncated = False

    def receiver(self, connection: socket.socket) -> Callable[[memoryview], int]:
        """As connection.recv_into, and keeps the descriptors that come along."""

        def receive(into: memoryview) -> int:
            data, descriptors, flags, _ = socket.recv_fds(
                connection, min(len(into), _READ_BYTES), _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
            )
            self.descriptors += descriptors
            self._truncated |= bool(flags & socket.MSG_CTRUNC)
            into[: len(data)] = data
            return len(data)

        return receive

    def check(self) -> None:
        """Keep those that a Welcome with shared memory needs. Raises where there are too few."""
        found = len(self.descriptors)
        if found < _DESCRIPTORS:
            if self._truncated:
                raise NoSharedMemory(
                    f"this process could take in {found} of the {_DESCRIPTORS} descriptors of shared memory:"
                    " too many"
                    " are open; raise its limit (ulimit -n)"
                )
            if found == 0:
                raise NoSharedMemory(
                    "no descriptors came with the Welcome: the connection is forwarded (SSH?), and shared"
                    " memory works"
                    " on the daemon's host only; connect with the stream transport"
                )
            raise ProtocolBroken(
                f"the daemon passed {found} descriptors with its Welcome, expected {_DESCRIPTORS}"
            )
        for number in self.descriptors[_DESCRIPTORS:]:
            os.close(number)
        del self.descriptors[_DESCRIPTORS:]

    def close(self) -> None:
        """Keep none."""
        for number in self.descriptors:
            os.close(number)
        self.descriptors.clear()


def _left_s(deadline_s: float) -> float | None:
    # settimeout(0) would mean non-blocking, and None for ever
    return None if math.isinf(deadline_s) else max(deadline_s - time.monotonic(), 1e-6)
