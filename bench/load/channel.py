"""A connection of the load generator in Python: bytes out and bytes in, never blocking once it is open."""

from __future__ import annotations

import os
import socket
from typing import Protocol

from sigd.bench.errors import PeerFailed
from sigd.bench.load.contract import Violation, ViolationKind
from sigd.wire import fields
from sigd.wire.layout import HEADER_STRUCT
from sigd.wire.messages import Reject

_HEADER_BYTES = fields.HEADER_BYTES
_READ_BYTES = 1 << 18
_OPEN_TIMEOUT_S = 5.0
_DESCRIPTORS_MAX = 3


class Channel(Protocol):
    """A connection that never blocks."""

    def send(self, data: memoryview) -> int:
        """Take what there is room for; how many bytes that was."""

    def receive(self) -> bytes | None:
        """What has arrived; b"" where nothing has, None where the peer has closed."""


class BrokenContract(Exception):
    """The peer did what wire.md does not allow; `violation` says what."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


class SocketChannel:
    """A Unix stream socket as a Channel.

    Attributes:
        descriptors: what was passed with the Welcome; closed with the channel.
    """

    def __init__(self, path: str) -> None:
        self.descriptors: list[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(_OPEN_TIMEOUT_S)
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise PeerFailed(f"no daemon answers at {path}: {error}") from error

    def open(self, number: int, hello: bytes) -> bytes:
        """Say Hello and return the Welcome frame. Raises BrokenContract where none comes."""
        try:
            self._socket.sendall(hello)
            frame = self._read_frame(number)
        except TimeoutError:
            raise BrokenContract(
                Violation(ViolationKind.NO_WELCOME, number, 128, 0, f"none within {_OPEN_TIMEOUT_S:.0f} s")
            ) from None
        except OSError as error:
            raise BrokenContract(Violation(ViolationKind.CLOSED_EARLY, number, 128, 0, str(error))) from error
        template_id = HEADER_STRUCT.unpack_from(frame)[1]
        if template_id == fields.REJECT.template_id:
            raise BrokenContract(rejection(number, frame))
        if template_id != fields.WELCOME.template_id or len(frame) < 128:
            raise BrokenContract(
                Violation(ViolationKind.NO_WELCOME, number, 2, template_id, "the first frame is no Welcome")
            )
        self._socket.setblocking(False)
        return frame

    def _read_frame(self, number: int) -> bytes:
        frame = b""
        wanted = _HEADER_BYTES
        while len(frame) < wanted:
            got, passed, _, _ = socket.recv_fds(self._socket, wanted - len(frame), _DESCRIPTORS_MAX)
            self.descriptors += passed
            if not got:
                raise BrokenContract(
                    Violation(
                        ViolationKind.CLOSED_EARLY,
                        number,
                        wanted,
                        len(frame),
                        "the daemon closed the connection before its Welcome",
                    )
                )
            frame += got
            if len(frame) == _HEADER_BYTES:
                wanted += HEADER_STRUCT.unpack(frame)[0]
        return frame

    def send(self, data: memoryview) -> int:
        """See Channel."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes | None:
        """See Channel."""
        try:
            return self._socket.recv(_READ_BYTES) or None
        except BlockingIOError:
            return b""
        except ConnectionError:
            return None

    def close(self) -> None:
        """Close the socket, and what came with the Welcome."""
        self._socket.close()
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


def rejection(number: int, frame: bytes) -> Violation:
    """What a Reject frame says, as the end of a run."""
    reject = Reject.decode(frame[_HEADER_BYTES:])
    return Violation(ViolationKind.REJECTED, number, 0, reject.code, reject.reason)
