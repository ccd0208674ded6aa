"""How a client gets to its Welcome: connect, Hello, and what each failure on the way means."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import struct
import time
from typing import Final

from sigd.wire.errors import ConnectFailed, FrameError, ProtocolBroken, ReceiveTimeout, SessionClosed
from sigd.wire.framer import Framer
from sigd.wire.greeting import read_welcome
from sigd.wire.messages import Hello, Welcome

_TIMEVAL: Final = struct.Struct("@ll")


def open_connection(path: str, timeout_s: float) -> socket.socket:
    """A connected stream socket. Raises ConnectFailed, with what to do about it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline_s = time.monotonic() + timeout_s
    try:
        # A blocking connect waits for room in the listener's backlog, for this long; a non-blocking one fails.
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
    """A signal may interrupt connect(), and Python then believes that a Unix socket connects by itself meanwhile."""
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
        return "nobody listens on it; start the daemon (sigd serve)"
    if isinstance(error, PermissionError):
        return "permission denied; join the group that owns the socket"
    if isinstance(error, BlockingIOError):
        return "the daemon did not accept the connection in time"
    return str(error)


def shake_hands(connection: socket.socket, hello: Hello, deadline_s: float) -> tuple[Welcome, bytes]:
    """Hello out, Welcome in; also the bytes that came behind it."""
    framer = Framer()
    try:
        connection.settimeout(_left_s(deadline_s))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # a daemon that is full says so and closes without waiting for Hello: what it said is still to be read
            connection.sendall(hello.encode())
        while (frame := framer.next_frame()) is None:
            connection.settimeout(_left_s(deadline_s))
            count_bytes = connection.recv_into(framer.writable())
            if count_bytes == 0:
                raise SessionClosed("the daemon closed the connection before its Welcome")
            framer.arrived(count_bytes)
        return read_welcome(frame, hello), framer.rest()
    except TimeoutError:
        raise ReceiveTimeout("the daemon did not answer Hello within the time given") from None
    except OSError as error:
        raise SessionClosed(f"the connection was lost before Welcome: {error}") from error
    except FrameError as error:
        raise ProtocolBroken(f"the daemon answered Hello with no valid frame: {error.reason}") from error


def _left_s(deadline_s: float) -> float | None:
    # settimeout(0) would mean non-blocking, and None for ever
    return None if math.isinf(deadline_s) else max(deadline_s - time.monotonic(), 1e-6)
