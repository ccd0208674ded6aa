"""The stream transport on a real loop and real sockets, with a session that does what the test says."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sigd.daemon.transport import stream as stream_module
from sigd.daemon.transport.stream import StreamProtocol

UNSENT_BYTES_MAX = 1 << 20


class ScriptedSession:
    """Stands for `Session`: keeps what arrives, and calls `react` with the transport for each piece."""

    def __init__(self, peer: StreamProtocol, react: Callable[[StreamProtocol, bytes], None]) -> None:
        self.peer = peer
        self.react = react
        self.buffer = bytearray(1 << 16)
        self.events: list[str] = []

    def writable(self) -> memoryview:
        return memoryview(self.buffer)

    def arrived(self, count_bytes: int, now_ns: int) -> None:
        assert now_ns > 0
        self.events.append("arrived")
        self.react(self.peer, bytes(self.buffer[:count_bytes]))

    def ended(self, now_ns: int) -> None:
        self.events.append("ended")

    def turn(self, now_ns: int) -> None:
        self.events.append("turn")

    def lost(self) -> None:
        self.events.append("lost")
        del self.peer


class Server:
    """Accepts connections on a socket in `folder`.

    Attributes:
        opened: the connections, in order.
        closed: those that are gone.
        errors: what the loop was told of unhandled exceptions.
    """

    def __init__(self, folder: Path, react: Callable[[StreamProtocol, bytes], None]) -> None:
        self.path = str(folder / "s")
        self.react = react
        self.opened: list[StreamProtocol] = []
        self.closed: list[StreamProtocol] = []
        self.errors: list[dict[str, Any]] = []

    def make(self) -> StreamProtocol:
        return StreamProtocol(
            lambda peer: ScriptedSession(peer, self.react),  # type: ignore[arg-type, return-value]
            self.opened.append,
            self.closed.append,
            UNSENT_BYTES_MAX,
        )

    async def connect(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        before = len(self.opened)
        await loop.sock_connect(client, self.path)
        await until(lambda: len(self.opened) > before)
        return client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


async def read_all(client: socket.socket) -> bytes:
    loop, received = asyncio.get_running_loop(), bytearray()
    while part := await loop.sock_recv(client, 1 << 16):
        received += part
    return bytes(received)


def run(
    folder: Path, react: Callable[[StreamProtocol, bytes], None], scene: Callable[[Server], Awaitable[None]]
) -> None:
    """Play a scene against a server; what the loop catches fails the test, unless the scene takes it away."""

    async def main() -> None:
        server = Server(folder, react)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: server.errors.append(context))
        listening = await loop.create_unix_server(server.make, server.path)
        try:
            await scene(server)
        finally:
            listening.close()
        await until(lambda: len(server.closed) == len(server.opened))
        assert server.errors == []

    uvloop.run(main())


def echo(peer: StreamProtocol, data: bytes) -> None:
    peer.send(data)


def events_of(connection: StreamProtocol) -> list[str]:
    session: Any = connection.session
    events: list[str] = session.events
    return events


def test_what_is_sent_arrives(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        loop = asyncio.get_running_loop()
        with await server.connect() as client:
            await loop.sock_sendall(client, b"one")
            assert await loop.sock_recv(client, 100) == b"one"
            server.opened[0].send(memoryview(b"two"))
            assert await loop.sock_recv(client, 100) == b"two"
        await until(lambda: bool(events_of(server.opened[0])))
        server.opened[0].finish()

    run(tmp_path, echo, scene)


def test_bytes_keep_their_order_where_the_kernel_takes_no_more(tmp_path: Path) -> None:
    pieces = [bytes([number % 251]) * (1 + 37 * number % 5000) for number in range(380)]
    whole = b"".join(pieces)
    assert 300_000 < len(whole) < UNSENT_BYTES_MAX

    async def scene(server: Server) -> None:
        loop = asyncio.get_running_loop()
        with await server.connect() as client:
            (connection,) = server.opened
            received = bytearray()
            for number, piece in enumerate(pieces):
                buffer = bytearray(piece)
                connection.send(memoryview(buffer))
                buffer[:] = bytes(len(buffer))  # the caller's own again as soon as send() returns
                if number % 60 == 59:
                    received += await loop.sock_recv(client, 100_000)
                    await asyncio.sleep(0.001)
            connection.finish()
            received += await read_all(client)
            assert received == whole
        assert not connection.cut_off

    run(tmp_path, echo, scene)


def test_a_client_that_does_not_read_is_cut_off_at_the_bound(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        loop = asyncio.get_running_loop()
        with await server.connect() as slow, await server.connect() as other:
            connection = server.opened[0]
            piece = bytes(10_000)
            sent = 0
            while not connection.cut_off:
                connection.send(piece)
                sent += len(piece)
                assert sent < UNSENT_BYTES_MAX + (1 << 20), "the bound and what the kernel holds"
            assert sent > UNSENT_BYTES_MAX
            connection.send(b"into the void")
            assert server.closed == [], "its loss is told by the loop, not inside send()"
            await until(lambda: connection in server.closed)
            assert events_of(connection) == ["lost"]
            connection.send(b"into the void")
            await loop.sock_sendall(other, b"still here")
            assert await loop.sock_recv(other, 100) == b"still here"
            assert len(await read_all(slow)) < sent
        server.opened[1].finish()

    run(tmp_path, echo, scene)


def test_finish_sends_what_is_kept_then_closes(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        with await server.connect() as client:
            (connection,) = server.opened
            connection.send(bytes(900_000))
            connection.finish()
            connection.send(b"too late")
            assert len(await read_all(client)) == 900_000

    run(tmp_path, echo, scene)


def test_finish_gives_up_on_a_client_that_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "LINGER_S", 0.02)

    async def scene(server: Server) -> None:
        with await server.connect():
            (connection,) = server.opened
            connection.send(bytes(900_000))
            connection.finish()
            await until(lambda: server.closed == [connection])

    run(tmp_path, echo, scene)


def test_sending_to_a_client_that_has_gone(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        (await server.connect()).close()
        (connection,) = server.opened
        for _ in range(20):
            connection.send(b"anybody?")
        await until(lambda: server.closed == [connection])
        assert events_of(connection)[-1] == "lost"
        assert not connection.cut_off

    run(tmp_path, echo, scene)


def test_a_client_that_closes_its_way_out_still_gets_its_answers(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        with await server.connect() as client:
            (connection,) = server.opened
            client.shutdown(socket.SHUT_WR)
            await until(lambda: events_of(connection) == ["ended"])
            connection.send(b"the answer")
            connection.finish()
            assert await read_all(client) == b"the answer"

    run(tmp_path, echo, scene)


@pytest.mark.parametrize("ending", ["_abort", "finish"])
def test_the_end_may_come_while_bytes_arrive(tmp_path: Path, ending: str) -> None:
    def react(peer: StreamProtocol, data: bytes) -> None:
        peer.send(data)
        getattr(peer, ending)()
        peer.send(b"not sent")
        peer.pause_reading()
        peer.resume_reading()

    async def scene(server: Server) -> None:
        loop = asyncio.get_running_loop()
        with await server.connect() as client:
            await loop.sock_sendall(client, b"x" * 100)
            assert await read_all(client) == b"x" * 100
        assert events_of(server.opened[0]) == ["arrived", "lost"]

    run(tmp_path, react, scene)


def test_nothing_is_read_while_reading_is_paused(tmp_path: Path) -> None:
    def react(peer: StreamProtocol, data: bytes) -> None:
        peer.pause_reading()
        peer.pause_reading()

    async def scene(server: Server) -> None:
        loop = asyncio.get_running_loop()
        with await server.connect() as client:
            (connection,) = server.opened
            for _ in range(3):
                await loop.sock_sendall(client, b"x")
                await asyncio.sleep(0.005)
            assert events_of(connection) == ["arrived"]
            connection.resume_reading()
            connection.resume_reading()
            await until(lambda: events_of(connection) == ["arrived", "arrived"])
            connection.finish()

    run(tmp_path, react, scene)


def test_a_turn_comes_in_the_next_round_even_where_the_connection_is_gone(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        with await server.connect():
            (connection,) = server.opened
            connection.yield_turn()
            assert events_of(connection) == []
            await asyncio.sleep(0)
            await until(lambda: events_of(connection) == ["turn"])
            connection.yield_turn()
            connection.finish()
            await until(lambda: server.closed == [connection])

    run(tmp_path, echo, scene)


def test_an_error_in_a_session_ends_its_connection_alone(tmp_path: Path) -> None:
    def react(peer: StreamProtocol, data: bytes) -> None:
        if data == b"bad":
            raise RuntimeError("a bug in the session")
        peer.send(data)

    async def scene(server: Server) -> None:
        loop = asyncio.get_running_loop()
        with await server.connect() as unlucky, await server.connect() as other:
            await loop.sock_sendall(unlucky, b"bad")
            assert await read_all(unlucky) == b""
            await loop.sock_sendall(other, b"good")
            assert await loop.sock_recv(other, 100) == b"good"
            (error,) = server.errors
            assert isinstance(error["exception"], RuntimeError)
            server.errors.clear()
            assert server.closed == server.opened[:1]
            assert events_of(server.opened[0]) == ["arrived", "lost"]
        server.opened[1].finish()

    run(tmp_path, react, scene)


def test_a_closed_connection_is_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    async def scene(server: Server) -> None:
        loop = asyncio.get_running_loop()
        gc.disable()
        try:
            with await server.connect() as client:
                await loop.sock_sendall(client, b"x")
                await loop.sock_recv(client, 1)
            await until(lambda: events_of(server.opened[0])[-1] == "ended")
            server.opened[0].finish()
            await until(lambda: bool(server.closed))
            connection = weakref.ref(server.opened[0])
            server.opened.clear()
            server.closed.clear()
            await until(lambda: connection() is None)
        finally:
            gc.enable()

    run(tmp_path, echo, scene)
