"""The rings of shared memory as a connection of the load generator in Python.

Requests and answers travel in the rings; the socket is looked at now and then, for what the daemon says
besides and as its sign of life. What `receive` gives is one stream of whole frames all the same.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from sigd.bench.errors import MissingDependency
from sigd.bench.load.channel import BrokenContract, SocketChannel
from sigd.bench.load.contract import Violation, ViolationKind
from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.layout import HEADER_STRUCT
from sigd.wire.messages import Welcome
from sigd.wire.ring import Region, RingConsumer, RingProducer, why_not_here

_HEADER_BYTES = fields.HEADER_BYTES
_DESCRIPTORS = 3
_LOOKS_PER_SOCKET_LOOK = 256


class RingChannel(SocketChannel):
    """See the module. A SocketChannel is its way for control messages."""

    _requests: RingProducer
    _responses: RingConsumer

    def __init__(self, path: str) -> None:
        refused = why_not_here()
        if refused:
            raise MissingDependency(refused)
        super().__init__(path)
        self._number = 0
        self._looks_left = _LOOKS_PER_SOCKET_LOOK
        self._said = b""

    def open(self, number: int, hello: bytes) -> bytes:
        """Say Hello, map what comes with the Welcome, and return its frame. Raises BrokenContract as the base
        does."""
        self._number = number
        frame = super().open(number, hello)
        region = self._attached(Welcome.decode(frame[_HEADER_BYTES:]))
        self._requests, self._responses = region.requests_out(), region.responses_in()
        self._room = memoryview(bytearray(self._responses.ring_slots * self._responses.frame_bytes))
        return frame

    def _attached(self, welcome: Welcome) -> Region:
        if len(self.descriptors) < _DESCRIPTORS:
            raise self._broken(ViolationKind.NO_WELCOME, _DESCRIPTORS, len(self.descriptors), "descriptors")
        memory = self.descriptors[0]
        try:
            sealed = fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            region = Region.attach(memoryview(mmap.mmap(memory, 0)))
        except (OSError, ValueError, FrameError) as error:
            raise self._broken(ViolationKind.NO_WELCOME, 0, 0, f"the region: {error}") from error
        if not sealed:
            raise self._broken(ViolationKind.NO_WELCOME, 0, 0, "the region is not sealed against shrinking")
        layout = region.layout
        told = (welcome.ring_slots, welcome.request_stride, welcome.response_stride)
        if (layout.ring_slots, layout.request_stride, layout.response_stride) != told or (
            layout.features,
            layout.outputs,
        ) != (welcome.features, welcome.outputs):
            raise self._broken(ViolationKind.NO_WELCOME, 0, 0, "the region is not the Welcome's")
        return region

    def send(self, data: memoryview) -> int:
        """See Channel."""
        requests = self._requests
        try:
            taken = min(requests.room() * requests.frame_bytes, len(data))
            if taken and requests.publish(data[:taken]):
                os.eventfd_write(self.descriptors[1], 1)
        except FrameError as error:
            raise self._broken(ViolationKind.COUNTER, 0, 0, error.reason) from error
        return taken

    def receive(self) -> bytes | None:
        """See Channel."""
        answers = self._answers()
        if answers:
            return answers
        self._looks_left -= 1
        if self._looks_left:
            return b""
        self._looks_left = _LOOKS_PER_SOCKET_LOOK
        said = super().receive()
        if said == b"":
            return b""
        # What the socket says comes after the answers that were published before it was said.
        while more := self._answers():
            answers += more
        if said is None:
            self._looks_left = 1
            return answers or None
        self._said += said
        return answers + self._controls()

    def _answers(self) -> bytes:
        """What is in the ring."""
        responses, room = self._responses, self._room
        try:
            if not responses.waiting():
                return b""
        except FrameError as error:
            raise self._broken(ViolationKind.COUNTER, 0, 0, error.reason) from error
        try:
            rows = responses.take(room, responses.ring_slots)
        except FrameError:
            try:
                # What stands before the wrong frame is an answer still.
                rows = responses.take(room, 1)
            except FrameError as error:
                raise self._broken(ViolationKind.HEADER, 0, 0, error.reason) from error
        return bytes(room[: rows * responses.frame_bytes])

    def _controls(self) -> bytes:
        """The whole frames of what the socket has said; the rest waits."""
        at = 0
        while len(self._said) - at >= _HEADER_BYTES:
            block_length, template_id, _, _ = HEADER_STRUCT.unpack_from(self._said, at)
            end = at + _HEADER_BYTES + block_length
            if end > len(self._said):
                break
            if template_id == fields.SIGNAL_RESPONSE.template_id:
                raise self._broken(ViolationKind.HEADER, 0, template_id, "an answer beside the ring")
            at = end
        whole, self._said = self._said[:at], self._said[at:]
        return whole

    def _broken(self, kind: ViolationKind, expected: int, found: int, text: str) -> BrokenContract:
        return BrokenContract(Violation(kind, self._number, expected, found, text))
