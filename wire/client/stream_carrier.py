"""The Unix stream as a client's carrier: requests, answers and control frames are one sequence of bytes each
way."""

from __future__ import annotations

import select
import socket

from sigd.wire.client.carrier import POLL_S_MAX
from sigd.wire.client.response_inbox import ResponseInbox
from sigd.wire.framer import Frame


class StreamCarrier:
    """Implements Carrier on a connected socket, which it owns from now on."""

    def __init__(self, connection: socket.socket, inbox: ResponseInbox, rest: bytes, *, spin: bool) -> None:
        """
        Args:
            rest: what came behind the Welcome.
            spin: `wait` returns at once; the caller looks again.
        """
        self._socket = connection
        self._inbox = inbox
        self._spin = spin
        self._unsent = False
        connection.setblocking(False)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._either = select.poll()
        self._either.register(connection, select.POLLIN | select.POLLOUT)
        inbox.feed(rest)

    def fileno(self) -> int:
        return self._socket.fileno()

    def offer_requests(self, frames: memoryview | bytes) -> int:
        try:
            sent_bytes = self._socket.send(frames)
        except BlockingIOError:
            sent_bytes = 0
        self._unsent = sent_bytes < len(frames)
        return sent_bytes

    offer_control = offer_requests

    def pull(self) -> bool:
        try:
            count_bytes = self._socket.recv_into(self._inbox.writable())
        except BlockingIOError:
            return False
        if count_bytes == 0:
            raise EOFError
        self._inbox.arrived(count_bytes)
        return True

    def next_control(self) -> Frame | None:
        return self._inbox.scan()

    def wait(self, timeout_s: float) -> None:
        timeout_ms = min(timeout_s, POLL_S_MAX) * 1e3
        if self._unsent:
            self._either.poll(timeout_ms)
        elif not self._spin:
            self._readable.poll(timeout_ms)

    def close(self) -> None:
        self._socket.close()
