"""Answers questions on the admin socket. The daemon hands out its counts as they are; the client works out
percentiles, so that a question costs the hot path as little as it can.

A first line of HTTP, such as GET /metrics HTTP/1.1, is answered over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import Final

import msgspec

from sigd.daemon.admin.messages import ANSWER_TIMEOUT_S, REQUEST_BYTES_MAX, AdminError, AdminRequest
from sigd.daemon.admin.metrics.http import Pages, is_http, respond
from sigd.daemon.errors import DaemonError

log = logging.getLogger(__name__)

_FINISH_LOOK_S: Final = 0.001
CLIENTS_MAX: Final = 16
"""Connections at a time; further ones are closed."""

Op = Callable[[AdminRequest], Awaitable[msgspec.Struct]]
"""Works out the answer to one kind of question."""


class AdminServer:
    """Answers on an open listener until it is closed.

    Args:
        ops: what may be asked, by name; where there are none, only HTTP is spoken.
        pages: what may be asked over HTTP.
        timeout_s: for a question to come and for its answer to be taken; how long an answer takes is the op's
            business.
        every_s: how long the next connection waits in the kernel's queue after one was accepted: each
            question takes time from the loop, and on loopback any process may ask as often as it can. 0
            accepts all at once.
    """

    def __init__(
        self,
        ops: Mapping[str, Op],
        pages: Pages | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        every_s: float = 0.0,
    ) -> None:
        self._ops = ops
        self._pages = pages or {}
        self._timeout_s = timeout_s
        self._every_s = every_s
        self._accepting: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._clients = 0
        self._answering = 0
        self._server: asyncio.AbstractServer | None = None
        self._encoder = msgspec.json.Encoder()

    async def start(self, listener: socket.socket) -> None:
        """Begin to answer."""
        if self._every_s:
            self._accepting = asyncio.create_task(self._accept(listener))
            self._accepting.add_done_callback(lambda _: listener.close())
            return
        # start_unix_server() would on some versions of Python remove the file, which may not be ours.
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=REQUEST_BYTES_MAX)

    def close(self) -> None:
        """Answer no more."""
        if self._accepting is not None:
            self._accepting.cancel()
        if self._server is not None:
            self._server.close()

    async def finish(self, timeout_s: float) -> None:
        """Wait until every client has its answer, or does not take it."""
        deadline_s = monotonic() + timeout_s
        while self._answering and monotonic() < deadline_s:
            await asyncio.sleep(_FINISH_LOOK_S)

    async def _accept(self, listener: socket.socket) -> None:
        """One after the other, with a pause after each."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
                serving = asyncio.create_task(self._serve_on(connection))
                self._serving.add(serving)
                serving.add_done_callback(self._serving.discard)
            except OSError as error:
                # No descriptor is left: the next one may find one.
                log.warning("an admin client cannot be answered: %s", error)
            await asyncio.sleep(self._every_s)

    async def _serve_on(self, connection: socket.socket) -> None:
        try:
            streams = await asyncio.open_connection(sock=connection, limit=REQUEST_BYTES_MAX)
        except OSError as error:
            connection.close()
            log.warning("an admin client cannot be answered: %s", error)
        else:
            await self._serve(*streams)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients <= CLIENTS_MAX:
                async with asyncio.timeout(self._timeout_s):
                    asked = await self._ask(reader)
                self._answering += 1
                try:
                    answer = asked if isinstance(asked, bytes) else await self._answer(*asked)
                    async with asyncio.timeout(self._timeout_s):
                        writer.write(answer)
                        await writer.drain()
                        writer.close()
                        await writer.wait_closed()
                finally:
                    self._answering -= 1
        except (OSError, TimeoutError):
            # The client went away, or keeps silent: no one is left to tell.
            pass
        finally:
            self._clients -= 1
            writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader) -> bytes | tuple[Op, AdminRequest]:
        """The answer, where there is one at once, or what works it out."""
        try:
            line = await reader.readline()
        except ValueError:
            return self._encoded(AdminError(f"a line of more than {REQUEST_BYTES_MAX} bytes"))
        if is_http(line) or not self._ops:
            return await respond(line, reader, self._pages)
        try:
            request = msgspec.json.decode(line, type=AdminRequest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._encoded(AdminError(f'{error}; expected one JSON line such as {{"op": "status"}}'))
        op = self._ops.get(request.op)
        if op is None:
            return self._encoded(AdminError(f"unknown op {request.op!r}, expected: {', '.join(self._ops)}"))
        return op, request

    async def _answer(self, op: Op, request: AdminRequest) -> bytes:
        try:
            return self._encoded(await op(request))
        except DaemonError as error:
            return self._encoded(AdminError(str(error)))

    def _encoded(self, answer: msgspec.Struct) -> bytes:
        return self._encoder.encode(answer) + b"\n"
