"""A small daemon for the load generators to measure: written from the wire's definition with `struct` alone,
in a thread, so that it shares no code with what it tests. It speaks over a stream or shared memory, as it is
asked, and can be told to misbehave at one request."""

from __future__ import annotations

import array
import fcntl
import math
import mmap
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.bench.unix_server import UnixServer
from tests.workers import folder_of_all_workers, locked

from sigd.bench.native.build import NativePrograms, build
from sigd.wire.status import Status

FEATURES = 4
OUTPUTS = 3
SLOTS = 64
REQUEST_BYTES, REQUEST_STRIDE = 56, 64
RESPONSE_BYTES, RESPONSE_STRIDE = 72, 128

_HEADER = struct.Struct("<HHHH")
_REQUEST = struct.Struct("<QQQIHH4f")
_RESPONSE = struct.Struct("<QQQQIIIHH3f4x")
_REJECT = _HEADER.pack(72, 3, 91, 1)
_NAN3 = (math.nan,) * 3
_ONES = (1.0, 2.0, 3.0)


def _frame(template_id: int, block: bytes, version: int = 1) -> bytes:
    return _HEADER.pack(len(block), template_id, 91, version) + block


class Rings:
    """A region as its page describes it, and what a daemon does with its rings."""

    def __init__(self, sealed: bool = True) -> None:
        self.memory = os.memfd_create("peer", os.MFD_ALLOW_SEALING)
        self._responses_at = 4096 + SLOTS * REQUEST_STRIDE
        size = self._responses_at + SLOTS * RESPONSE_STRIDE
        os.ftruncate(self.memory, size)
        if sealed:
            fcntl.fcntl(
                self.memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
        self._map = memoryview(mmap.mmap(self.memory, size))
        self._words = self._map[:4096].cast("Q")
        struct.pack_into(
            *("<7I", self._map, 0, 0x31444753, 1),
            *(SLOTS, REQUEST_STRIDE, RESPONSE_STRIDE, FEATURES, OUTPUTS),
        )
        struct.pack_into("<I", self._map, 640, 1)  # it always sleeps: ring for each request
        self.request_bell = os.eventfd(0, os.EFD_NONBLOCK)
        self.response_bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._taken = self.published = 0

    def take(self) -> Iterator[bytes]:
        while self._taken < self._words[128 // 8]:
            at = 4096 + self._taken % SLOTS * REQUEST_STRIDE
            self._taken += 1
            request = bytes(self._map[at : at + REQUEST_BYTES])
            self._words[256 // 8] = self._taken
            yield request

    def put(self, frame: bytes) -> None:
        at = self._responses_at + self.published % SLOTS * RESPONSE_STRIDE
        self._map[at : at + len(frame)] = frame
        self.publish(self.published + 1)

    def publish(self, head: int) -> None:
        self.published = self._words[384 // 8] = head

    def close(self) -> None:
        for descriptor in (self.memory, self.request_bell, self.response_bell):
            os.close(descriptor)


class Peer(UnixServer):
    """`fault` names what goes wrong at request number `at` (from 0, over one connection); "" is a peer
    without fault."""

    def __init__(self, path: Path, fault: str = "", at: int = 50, stall_s: float = 0.05) -> None:
        super().__init__(path, backlog=8)
        self.fault = fault
        self.at = at
        self.stall_s = stall_s
        self.requests: list[tuple[int, int]] = []

    def converse(self, connection: socket.socket) -> None:
        hello = connection.recv(80, socket.MSG_WAITALL)
        if _HEADER.unpack_from(hello) != (72, 1, 91, 1):
            return
        if self.fault == "reject_hello":
            connection.sendall(_frame(3, struct.pack("<HHI64s", 5, 0, 0, b"no such model")))
            return
        if self.fault == "close_before_welcome":
            return
        if struct.unpack_from("<H", hello, 16)[0] == 1:
            self._converse_in_rings(connection)
            return
        connection.sendall(self._welcome(0, 0, 0, 0))
        number = 0
        pending = b""
        while got := connection.recv(1 << 16):
            pending += got
            out = b""
            while len(pending) >= REQUEST_BYTES:
                request, pending = pending[:REQUEST_BYTES], pending[REQUEST_BYTES:]
                answer = self._answer(request, number)
                if answer is None:
                    connection.sendall(out)
                    return
                out += answer
                number += 1
            connection.sendall(out)

    def _welcome(self, *transport: int) -> bytes:
        """`transport`: what is granted, slots, the two strides."""
        granted, *rings = transport
        block = struct.pack(
            "<IIIIQQHHIIIQ32s32s",
            *(FEATURES, OUTPUTS, SLOTS, 1, 1, time.monotonic_ns()),
            *(granted, 0, *rings, 0, b"\x11" * 32, b"test"),
        )
        return _frame(2, block)

    def _converse_in_rings(self, connection: socket.socket) -> None:
        rings = Rings(sealed=self.fault != "unsealed")
        passed = array.array("i", [rings.memory, rings.request_bell, rings.response_bell])
        welcome = self._welcome(1, SLOTS, REQUEST_STRIDE, RESPONSE_STRIDE)
        try:
            connection.sendmsg([welcome], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
            self._answer_rings(connection, rings)
        finally:
            rings.close()

    def _answer_rings(self, connection: socket.socket, rings: Rings) -> None:
        watched = select.poll()
        watched.register(connection, select.POLLIN)
        watched.register(rings.request_bell, select.POLLIN)
        number = 0
        while True:
            ready = dict(watched.poll())
            if connection.fileno() in ready and not connection.recv(1 << 12):
                return
            if rings.request_bell in ready:
                os.eventfd_read(rings.request_bell)
            for request in rings.take():
                answer = self._answer(request, number)
                if answer is None:
                    return
                self._put(connection, rings, answer, self.fault if number == self.at else "")
                number += 1
                if answer.startswith(_REJECT):
                    return

    def _put(self, connection: socket.socket, rings: Rings, frames: bytes, fault: str) -> None:
        """Answers into the ring, what is none over the socket; what `fault` names is done wrong."""
        if fault == "answer_beside_the_ring":
            connection.sendall(frames)
            return
        if fault == "head_back":
            rings.publish(rings.published - 1)
            return
        if fault == "head_ahead":
            rings.publish(rings.published + SLOTS + 1)
            return
        if fault == "heartbeat_in_the_ring":
            rings.put(_frame(4, bytes(8)))
        if fault == "longer_than_its_slot":
            rings.put(_frame(11, bytes(RESPONSE_STRIDE), version=2)[:RESPONSE_STRIDE])
        while frames:
            length = 8 + _HEADER.unpack_from(frames)[0]
            frame, frames = frames[:length], frames[length:]
            if _HEADER.unpack_from(frame)[1:3] in ((3, 91), (4, 91)):
                connection.sendall(frame)
            else:
                rings.put(frame)

    def _answer(self, request: bytes, number: int) -> bytes | None:
        """The answer's bytes; None closes the connection."""
        receive_ns = time.monotonic_ns()
        assert _HEADER.unpack_from(request) == (48, 10, 91, 1)
        sequence, client_time_ns, _deadline, instrument, _flags, _, *_ = _REQUEST.unpack_from(request, 8)
        self.requests.append((sequence, instrument))
        fault = self.fault if number == self.at else ""
        if fault == "stall":
            time.sleep(self.stall_s)
        if fault == "silent" or (self.fault == "silent" and number > self.at):
            return b""
        if fault == "close_early":
            return None
        if fault == "lost":
            return b""
        if fault == "reject":
            return _frame(3, struct.pack("<HHI64s", 9, 0, 0, b"enough of you"))
        if fault == "foreign_template":
            return _frame(99, bytes(16))
        if fault == "foreign_schema":
            return _HEADER.pack(8, 4, 92, 1) + bytes(8)
        status, outputs, version = 0, _ONES, 1
        infer_ns = 10
        if self.fault == "busy" and number % 10 == 0:
            status, outputs, infer_ns = 2, _NAN3, 0
        send_ns = time.monotonic_ns() + 11
        while time.monotonic_ns() < send_ns:
            pass
        if fault == "wrong_sequence":
            sequence += 1
        elif fault == "client_time":
            client_time_ns += 1
        elif fault == "instrument":
            instrument += 1
        elif fault == "unknown_status":
            status = len(Status)
        elif fault == "nan_with_ok":
            outputs = (1.0, math.nan, 3.0)
        elif fault == "infinite_with_ok":
            outputs = (1.0, 2.0, math.inf)
        elif fault == "finite_with_busy":
            status = 2
        elif fault == "infer_too_long":
            infer_ns = 2_000_000_000
        elif fault == "stamps_backwards":
            receive_ns, send_ns = send_ns, receive_ns
        elif fault == "stamps_too_long":
            receive_ns //= 2
        block = _RESPONSE.pack(
            *(sequence, client_time_ns, receive_ns, send_ns, instrument, 1, infer_ns, status, 1, *outputs)
        )
        if self.fault == "newer_version":
            block, version = block + bytes(8), 2
        elif fault == "short":
            block = block[:-8]
        elif fault == "long":
            block += bytes(8)
        answer = _frame(11, block, version)
        if self.fault == "heartbeats":
            answer = _frame(4, struct.pack("<Q", send_ns)) + answer
        return answer * 2 if fault == "twice" else answer


@pytest.fixture
def start_peer(tmp_path: Path) -> Iterator[Callable[..., Peer]]:
    """Start a Peer at a socket of its own; it ends with the test.

    It is a thread of this process: a client in Python that makes no system call would let it run only when an
    interval of the interpreter's is over, several times for each request.
    """
    peers: list[Peer] = []
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def start(**options: object) -> Peer:
        peer = Peer(tmp_path / f"peer{len(peers)}.sock", **options)  # type: ignore[arg-type]
        peer.start()
        peers.append(peer)
        return peer

    yield start
    sys.setswitchinterval(interval_s)
    for peer in peers:
        peer.stop()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> NativePrograms:
    """The native programs, built once into the user's cache; skips where there is no compiler."""
    from sigd.bench.errors import MissingDependency

    try:
        # The second worker finds what the first has built.
        with locked(folder_of_all_workers(tmp_path_factory) / "native-programs.lock"):
            return build()
    except MissingDependency as error:
        pytest.skip(f"no native load generator: {error}")
