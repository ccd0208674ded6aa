"""Servers in a thread that answer each row with its first features, over HTTP/1.1 and over HTTP/2 as gRPC
does. Written from the protocols alone, so that they share no code with what they test."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.bench.unix_server import UnixServer

FEATURES = 4
OUTPUTS = 3


class AlternativeServer(UnixServer):
    """`fault` names what it does wrong at each request."""

    def __init__(self, path: Path, talk: Callable[[socket.socket, str], None], fault: str = "") -> None:
        super().__init__(path, backlog=128)
        self._talk = talk
        self._fault = fault

    def converse(self, connection: socket.socket) -> None:
        self._talk(connection, self._fault)


def outputs_of(features: bytes, fault: str) -> bytes:
    """The first features; one too high with the fault "wrong"."""
    values = struct.unpack(f"<{OUTPUTS}f", features[-4 * FEATURES :][: 4 * OUTPUTS])
    return struct.pack(f"<{OUTPUTS}f", *(value + (fault == "wrong") for value in values))


def http(connection: socket.socket, fault: str) -> None:
    """HTTP/1.1, in small pieces where the fault is "pieces"."""
    pending = b""
    while got := connection.recv(1 << 16):
        pending += got
        while b"\r\n\r\n" in pending:
            head, _, rest = pending.partition(b"\r\n\r\n")
            assert head.startswith(b"POST /infer HTTP/1.1\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            if len(rest) < length:
                break
            pending = rest[length:]
            body = b"{}" + outputs_of(rest[:length], fault)
            status = b"503 Service Unavailable" if fault == "busy" else b"200 OK"
            answer = b"HTTP/1.1 %s\r\nserver: t\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
            if fault == "close":
                return
            for piece in (answer[:30], answer[30:-2], answer[-2:]) if fault == "pieces" else (answer,):
                connection.sendall(piece)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def grpc(connection: socket.socket, fault: str) -> None:
    """HTTP/2: the last call of those that came together is answered first where the fault is "turned"."""
    pending = b""
    while len(pending) < 24:
        pending += connection.recv(1 << 16)
    assert pending.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    pending = pending[24:]
    connection.sendall(_frame(4, 0, 0, b"") + _frame(6, 0, 0, b"12345678"))
    while got := connection.recv(1 << 16):
        pending += got
        answers = []
        while len(pending) >= 9 and len(pending) >= 9 + (length := int.from_bytes(pending[:3], "big")):
            kind, _flags, stream = struct.unpack(">BBI", pending[3:9])
            payload, pending = pending[9 : 9 + length], pending[9 + length :]
            if kind == 0:
                outputs = outputs_of(payload, fault)
                message = b"" if fault == "failed" else b"\0" + struct.pack(">I", len(outputs)) + outputs
                data = _frame(0, 0, stream, message) if message else b""
                answers.append(_frame(1, 4, stream, b"\x88") + data + _frame(1, 5, stream, b"\x88"))
        connection.sendall(b"".join(answers[::-1] if fault == "turned" else answers))


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., AlternativeServer]]:
    """Starts servers, which end with the test."""
    started: list[AlternativeServer] = []

    def start(converse: Callable[[socket.socket, str], None], fault: str = "") -> AlternativeServer:
        server = AlternativeServer(tmp_path / f"{len(started)}.sock", converse, fault)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()
