"""A daemon's end of one session, for tests that play it: the same scene over a stream and over shared
memory."""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from sigd.wire import fields
from sigd.wire.fields import SIGNAL_REQUEST
from sigd.wire.framer import Frame
from sigd.wire.inbox import RequestInbox
from sigd.wire.layout import frame_dtype
from sigd.wire.messages import Heartbeat, Hello, ModelInfo, Welcome
from sigd.wire.outbox import ResponseOutbox
from sigd.wire.region import OFFSETS, RegionLayout, region_layout
from sigd.wire.ring import Region
from sigd.wire.status import Transport

FEATURES = 4
OUTPUTS = 2
SLOTS = 64
REQUEST_BYTES = 56
ROW = np.arange(FEATURES, dtype=np.float32)
WELCOME = Welcome(FEATURES, OUTPUTS, 256, 1, 4321, 99, bytes(range(32)), "test-model")
LAYOUT = region_layout(SLOTS, FEATURES, OUTPUTS)
PATIENCE_S = 30.0
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def newer(frame: bytes, version: int = 2, longer_bytes: int = 16) -> bytes:
    """The frame as a newer version would write it."""
    grown = bytearray(frame + b"\xee" * longer_bytes)
    struct.pack_into("<H", grown, 0, len(grown) - 8)
    struct.pack_into("<H", grown, 6, version)
    return bytes(grown)


def answer(sequence: int, outputs: tuple[float, ...] = (1, 2), status: int = 0) -> bytes:
    """A SignalResponse, built field by field."""
    block = struct.pack("<QQQQIIIHH", sequence, 0, 1, 2, 0, 1, 3, status, 1)
    block += struct.pack(f"<{len(outputs)}f", *outputs)
    block += bytes(-len(block) % 8)
    return struct.pack("<HHHH", len(block), 11, 91, 1) + block


def shared_welcome(layout: RegionLayout = LAYOUT, **changes: Any) -> Welcome:
    """The Welcome that goes with a region."""
    granted: dict[str, Any] = {name: getattr(WELCOME, name) for name in Welcome.__slots__}
    granted |= {
        "transport": Transport.SHARED_MEMORY,
        "in_flight_max": layout.ring_slots,
        "ring_slots": layout.ring_slots,
        "request_stride": layout.request_stride,
        "response_stride": layout.response_stride,
    }
    return Welcome(**(granted | changes))


class Line(ABC):
    """The daemon's end of a session.

    Attributes:
        connection: the socket, for scenes that need it bare.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    @abstractmethod
    def greet(self) -> Hello:
        """Take a Hello and grant what it asks for."""

    @abstractmethod
    def read(self, count: int) -> np.ndarray[Any, np.dtype[np.void]]:
        """The next `count` requests."""

    @abstractmethod
    def send(self, *frames: bytes | memoryview) -> None:
        """Frames in this order, each whole."""

    @abstractmethod
    def fill(self, inbox: RequestInbox) -> bool:
        """Wait until something comes and put it into the inbox; False where the client has closed."""

    @abstractmethod
    def until_the_client_waits(self) -> None:
        """Until it finds no room for what it sends."""

    def read_control(self, count_bytes: int) -> bytes:
        """Exactly so many bytes from the socket."""
        data = b""
        while len(data) < count_bytes:
            part = self.connection.recv(count_bytes - len(data))
            assert part, "the client closed"
            data += part
        return data

    def hello(self) -> Hello:
        """Take it."""
        return Hello.decode(self.read_control(80)[8:])

    def echo(self) -> None:
        """Be a daemon whose model gives the first two features; it conflates and expires nothing, answers
        everything."""
        self.greet()
        inbox = RequestInbox(FEATURES, SLOTS)
        outbox = ResponseOutbox(OUTPUTS, SLOTS, 1)
        while self.fill(inbox):
            while True:
                frame = inbox.scan(1)
                answered = inbox.rows
                while rows := min(inbox.rows, SLOTS):
                    outputs = inbox.row_features(0, rows)[:, :OUTPUTS]
                    words = inbox.row_words(0, rows)
                    self.send(
                        outbox.encode(words, outputs, None, send_time_ns=2, infer_ns=3, batch_rows=rows)
                    )
                    inbox.answered(rows)
                if frame is None and not answered:
                    break
                if frame is not None and not self._act(frame):
                    return

    def _act(self, frame: Frame) -> bool:
        if frame.header.template_id == fields.HEARTBEAT.template_id:
            self.send(Heartbeat(777).encode())
        if frame.header.template_id == fields.MODEL_INFO.template_id:
            asked = ModelInfo.decode(frame.block).model_generation
            self.send(ModelInfo(asked or 3, bytes([asked]) * 32, "m").encode())
        return frame.header.template_id != fields.GOODBYE.template_id

    def close(self) -> None:
        """Give everything back."""
        self.connection.close()


class StreamLine(Line):
    """Everything over the socket."""

    def greet(self) -> Hello:
        hello = self.hello()
        self.connection.sendall(WELCOME.encode())
        return hello

    def read(self, count: int) -> np.ndarray[Any, np.dtype[np.void]]:
        return np.frombuffer(self.read_control(count * REQUEST_BYTES), frame_dtype(SIGNAL_REQUEST, FEATURES))

    def send(self, *frames: bytes | memoryview) -> None:
        self.connection.sendall(b"".join(frames))

    def fill(self, inbox: RequestInbox) -> bool:
        count_bytes = self.connection.recv_into(inbox.writable())
        inbox.arrived(count_bytes)
        return count_bytes > 0

    def until_the_client_waits(self) -> None:
        arrived_bytes = -1
        while arrived_bytes != (arrived_bytes := len(self.connection.recv(1 << 24, socket.MSG_PEEK))):
            time.sleep(0.02)


class RingLine(Line):
    """Requests and answers in rings, everything else over the socket.

    Attributes:
        memory, request_bell, response_bell: descriptors; the client gets its own of them.
        region, requests, responses: the daemon's side of the rings.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self._open = contextlib.ExitStack()
        self._open.callback(connection.close)
        self.request_bell = self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self.response_bell = self._keep(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._watched = select.poll()
        self._watched.register(connection, select.POLLIN)
        self._watched.register(self.request_bell, select.POLLIN)
        self.make_region(LAYOUT)

    def _keep(self, number: int) -> int:
        self._open.callback(os.close, number)
        return number

    def make_region(self, layout: RegionLayout) -> None:
        """Another one than every line has at first."""
        self.memory = self._keep(os.memfd_create("region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(self.memory, layout.region_bytes)
        fcntl.fcntl(self.memory, fcntl.F_ADD_SEALS, SEALS)
        self.view = memoryview(mmap.mmap(self.memory, layout.region_bytes))
        self.region = Region.create(self.view, layout)
        self.requests = self.region.requests_in()
        self.responses = self.region.responses_out()

    def sealed_copy(self, region_bytes: int) -> int:
        """A descriptor, the caller's, of the beginning of the region."""
        number = os.memfd_create("short", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(number, region_bytes)
        os.pwrite(number, self.view[:region_bytes], 0)
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, SEALS)
        return number

    @property
    def descriptors(self) -> list[int]:
        """In the order in which they are passed."""
        return [self.memory, self.request_bell, self.response_bell]

    def greet(self) -> Hello:
        hello = self.hello()
        self.send_with(shared_welcome().encode(), self.descriptors)
        return hello

    def send_with(self, data: bytes, descriptors: list[int]) -> None:
        """Bytes over the socket, and descriptors with them."""
        passed = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        assert self.connection.sendmsg([data], passed) == len(data)

    def read(self, count: int) -> np.ndarray[Any, np.dtype[np.void]]:
        rows = np.zeros(count, frame_dtype(SIGNAL_REQUEST, FEATURES))
        bytes_of_rows = rows.data.cast("B")
        done = 0
        while done < count:
            done += (taken := self.requests.take(bytes_of_rows[done * REQUEST_BYTES :], count - done))
            if not taken:
                self._sleep()
        return rows

    def send(self, *frames: bytes | memoryview) -> None:
        for frame in frames:
            if bytes(frame[2:4]) != b"\x0b\x00":
                self.connection.sendall(frame)
            elif self.responses.publish(frame):
                os.eventfd_write(self.response_bell, 1)

    def _sleep(self) -> bool:
        """Until something comes; True where the socket has it, and the ring has nothing."""
        events: list[tuple[int, int]] = []
        if self.requests.may_sleep():
            events = self._watched.poll(PATIENCE_S * 1e3)
            assert events, "nothing comes"
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.request_bell)
        self.requests.awake()
        return any(number == self.connection.fileno() for number, _ in events) and not self.requests.waiting()

    def fill(self, inbox: RequestInbox) -> bool:
        while True:
            room = inbox.writable()
            if rows := self.requests.take(room, self.responses.room()):
                inbox.arrived(rows * REQUEST_BYTES)
                return True
            if self._sleep():
                count_bytes = self.connection.recv_into(room)
                inbox.arrived(count_bytes)
                return count_bytes > 0

    def word(self, name: str) -> int:
        """A counter of the region."""
        value: int = struct.unpack_from("<Q", self.view, OFFSETS[name])[0]
        return value

    def set_word(self, name: str, value: int) -> None:
        """Write a counter of the region, and wake the client up."""
        struct.pack_into("<Q", self.view, OFFSETS[name], value)
        os.eventfd_write(self.response_bell, 1)

    def client_sleeps(self) -> bool:
        """Its flag says so."""
        return bool(struct.unpack_from("<I", self.view, OFFSETS["client_sleeping"])[0])

    def until_the_client_sleeps(self) -> None:
        """Until its flag says so."""
        _until(self.client_sleeps)

    def until_head(self, head: int) -> None:
        """Until so many requests are published."""
        _until(lambda: self.word("request_head") == head)

    def until_rung(self) -> None:
        """Until the request doorbell rings."""
        _until(lambda: bool(select.select([self.request_bell], [], [], 0)[0]))

    def until_the_client_waits(self) -> None:
        self.until_head(SLOTS)
        self.until_the_client_sleeps()

    def close(self) -> None:
        if self.connection.fileno() >= 0:
            self._open.close()
            self.requests.release()
            self.responses.release()
            self.region.release()


def _until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "it does not come"
        time.sleep(0.001)
