"""A small daemon for the load generators to measure: written from the wire's definition with `struct` alone, in a
thread, so that it shares no code with what it tests. It can be told to misbehave at one request."""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sigd.bench.native import NativePrograms, build

FEATURES = 4
OUTPUTS = 3
REQUEST_BYTES = 56
RESPONSE_BYTES = 72

_HEADER = struct.Struct("<HHHH")
_REQUEST = struct.Struct("<QQQIHH4f")
_RESPONSE = struct.Struct("<QQQQIIIHH3f4x")
_NAN3 = (math.nan,) * 3
_ONES = (1.0, 2.0, 3.0)


def _frame(template_id: int, block: bytes, version: int = 1) -> bytes:
    return _HEADER.pack(len(block), template_id, 91, version) + block


class Peer(threading.Thread):
    """Serves connections one after another or together, each in a thread.

    `fault` names what goes wrong at request number `at` (from 0, over one connection); "" is a peer without fault.
    """

    def __init__(self, path: Path, fault: str = "", at: int = 50, stall_s: float = 0.05) -> None:
        super().__init__(daemon=True)
        self.path = str(path)
        self.fault = fault
        self.at = at
        self.stall_s = stall_s
        self.requests: list[tuple[int, int]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(8)
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(5)
        for thread in self._threads:
            thread.join(5)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._converse(connection)
            except OSError:
                return

    def _converse(self, connection: socket.socket) -> None:
        hello = connection.recv(80, socket.MSG_WAITALL)
        if _HEADER.unpack_from(hello) != (72, 1, 91, 1):
            return
        if self.fault == "reject_hello":
            connection.sendall(_frame(3, struct.pack("<HHI64s", 5, 0, 0, b"no such model")))
            return
        if self.fault == "close_before_welcome":
            return
        connection.sendall(
            _frame(
                2,
                struct.pack(
                    "<IIIIQQHHIIIQ32s32s",
                    *(FEATURES, OUTPUTS, 64, 1, 1, time.monotonic_ns()),
                    *(0, 0, 0, 0, 0, 0, b"\x11" * 32, b"test"),
                ),
            )
        )
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
            status = 7
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
    """Start a Peer at a socket of its own; it ends with the test."""
    peers: list[Peer] = []

    def start(**options: object) -> Peer:
        peer = Peer(tmp_path / f"peer{len(peers)}.sock", **options)  # type: ignore[arg-type]
        peer.start()
        peers.append(peer)
        return peer

    yield start
    for peer in peers:
        peer.stop()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> NativePrograms:
    """The native programs, built once into the user's cache; skips where there is no compiler."""
    from sigd.bench.errors import EnvironmentLacks

    try:
        return build()
    except EnvironmentLacks as error:
        pytest.skip(f"no native load generator: {error}")
