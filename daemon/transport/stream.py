"""The Unix stream transport: a thin shell that moves bytes between a socket and a session.

Answers are written straight to the descriptor, before the loop's round ends; only what the kernel does not
take at once goes through the transport's buffer, and a client that lets more than `unsent_bytes_max` pile up
is cut off.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from time import monotonic_ns
from typing import cast

from sigd.daemon.serving.session import Session
from sigd.daemon.transport.access_control import Credentials, credentials_of
from sigd.daemon.transport.ssh_forwarding import why_not_shared_memory

_write = os.write

RECEIVE_POLLS = 32
"""Reads of the only connection's socket in one round of the loop, about as long as a client takes to ask
again."""
RECEIVED_MAX = 16
"""How many of them may find something: the round also serves what else there is."""
LINGER_S = 5.0
"""How long a closed connection is kept for a client that still has answers to read."""


class TurnedAway(asyncio.Protocol):
    """A connection for which there is no memory: it ends at once. One object does for all of them."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


class StreamProtocol(asyncio.BufferedProtocol):
    """One connection. Implements daemon.peer.Peer.

    Args:
        make_session: a new session with this object as its peer.
        on_open: called with it when the connection is there.
        on_closed: called with it when the connection is gone, and whether it was cut off for not reading.
        unsent_bytes_max: see daemon.limits.

    Attributes:
        credentials: of the peer, from the opening on.
        descriptor: the socket's, -1 before the opening and after the end.
    """

    credentials: Credentials
    _transport: asyncio.Transport

    def __init__(
        self,
        make_session: Callable[[StreamProtocol], Session],
        on_open: Callable[[StreamProtocol], None],
        on_closed: Callable[[StreamProtocol], None],
        unsent_bytes_max: int,
    ) -> None:
        self.session = make_session(self)
        self.cut_off = False
        self._on_open = on_open
        self._on_closed = on_closed
        self._unsent_bytes_max = unsent_bytes_max
        self.descriptor = -1
        self._detour = True  # send() must not write straight to the descriptor
        self._reads = True

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio.Transport's methods, not its class
        self._transport = cast(asyncio.Transport, transport)
        connection = transport.get_extra_info("socket")
        self.credentials = credentials_of(connection)
        self.descriptor = connection.fileno()
        self._detour = False
        self._on_open(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.session.writable()

    def buffer_updated(self, nbytes: int) -> None:
        self.session.arrived(nbytes, monotonic_ns())

    def poll(self) -> bool:
        """Read the socket now, without waiting for the loop to find it readable, and answer what is there;
        False where nothing was. For the tick, where this is the only connection: a read that finds nothing
        costs less than a round of the loop."""
        if self._detour or not self._reads:
            return False
        return self.session.receive_round(self.descriptor, RECEIVE_POLLS, RECEIVED_MAX) > 0

    def eof_received(self) -> bool:
        self.session.ended(monotonic_ns())
        # Keep the way out open until the session is finished with it.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_writing()
        self.session.lost()
        self._on_closed(self)

    # -- the session's side

    def send(self, data: memoryview | bytes) -> None:
        """Write now what the kernel takes; the rest is copied and follows when it takes more."""
        if self._detour:
            self._send_behind(data)
            return
        try:
            written = _write(self.descriptor, data)
        except BlockingIOError:
            written = 0
        except OSError:
            # The peer is gone; connection_lost() will say so.
            self._abort()
            return
        if written != len(data):
            self._queue(data[written:])

    def send_descriptors(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        """Send a Welcome and what comes with it."""
        try:
            # The transport's own socket object does not pass descriptors.
            with socket.socket(fileno=os.dup(self.descriptor)) as connection:
                sent_bytes = socket.send_fds(connection, [data], descriptors)
        except OSError:
            # The peer is gone, or leaves the descriptors of so many sessions unread that it gets no more.
            sent_bytes = 0
        if sent_bytes != len(data):
            self._abort()

    def why_no_descriptors(self) -> str:
        """Why the peer cannot be given shared memory (it forwards connections), or ""."""
        return why_not_shared_memory(self.credentials.pid)

    def _send_behind(self, data: memoryview | bytes) -> None:
        """Send where something is unsent already, or the connection has ended."""
        if self.descriptor < 0:
            return
        if self._transport.get_write_buffer_size():
            self._queue(data)
        else:
            self._detour = False
            self.send(data)

    def _queue(self, data: memoryview | bytes) -> None:
        self._detour = True
        self._transport.write(bytes(data))
        if self._transport.get_write_buffer_size() > self._unsent_bytes_max:
            self.cut_off = True
            self._abort()

    def finish(self) -> None:
        """Send what is kept, then close; give up on a client that does not read it within `LINGER_S`."""
        self._end_writing()
        self._transport.close()
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)

    def _end_writing(self) -> None:
        """The descriptor's number may soon be another file's."""
        self.descriptor = -1
        self._detour = True

    def _abort(self) -> None:
        self._end_writing()
        self._transport.abort()

    def pause_reading(self) -> None:
        """Leave further bytes in the kernel's buffer."""
        self._reads = False
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._reads = True
        self._transport.resume_reading()

    def yield_turn(self) -> None:
        """Let the others have theirs first."""
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self.session.turn(monotonic_ns())
