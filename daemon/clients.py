"""Who is connected: connections as they come and go, the bounds on them, and how all of them are told that it ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING

from sigd.daemon.session import Session, State
from sigd.daemon.stream import StreamProtocol
from sigd.wire.status import GoodbyeCode, RejectCode

if TYPE_CHECKING:
    from sigd.daemon.batcher import Batcher
    from sigd.daemon.counters import ClientCounters
    from sigd.daemon.limits import Limits
    from sigd.daemon.peer import OpenRings

log = logging.getLogger(__name__)

DRAIN_GRACE_S = 0.25
"""How long a draining daemon lets clients that were told Goodbye close by themselves."""


class Clients:
    """The connections of one daemon. `accept` is what a listening server makes one with."""

    def __init__(
        self,
        find_model: Callable[[str], Batcher | None],
        limits: Limits,
        counters: ClientCounters,
        open_rings: OpenRings | None,
    ) -> None:
        """`find_model`, `open_rings`: see `Session`."""
        self._find_model = find_model
        self._limits = limits
        self._counters = counters
        self._open_rings = open_rings
        # Each with the timer that waits for its Hello.
        self._connections: dict[StreamProtocol, asyncio.TimerHandle] = {}
        self._refusing = False
        self._gone = asyncio.Event()

    def accept(self) -> StreamProtocol:
        """A connection that has just been made."""
        return StreamProtocol(
            lambda peer: Session(peer, self._find_model, self._counters, self._open_rings),
            self._opened,
            self._closed,
            self._limits.unsent_bytes_max,
        )

    def names(self) -> list[str]:
        """What the clients call themselves, sorted; those that have not said Hello yet are left out."""
        return sorted(
            connection.session.client_name
            for connection in self._connections
            if connection.session.state is not State.HELLO
        )

    def refuse(self) -> None:
        """Close whoever comes from now on: the daemon is stopping."""
        self._refusing = True

    async def drain(self) -> None:
        """Say Goodbye to all, answer what is pending, close, and wait until they are gone or it took too long."""
        for connection in list(self._connections):
            connection.session.drain(GoodbyeCode.DRAINING)
        await self._wait_until_gone(DRAIN_GRACE_S)
        now_ns = monotonic_ns()
        for connection in list(self._connections):
            connection.session.wind_up(now_ns)
        await self._wait_until_gone(self._limits.drain_timeout_s)

    def _opened(self, connection: StreamProtocol) -> None:
        limits = self._limits
        self._counters.connections_accepted += 1
        self._connections[connection] = asyncio.get_running_loop().call_later(
            limits.hello_timeout_s, self._check_hello, connection.session
        )
        self._counters.connections_open = len(self._connections)
        if self._refusing:
            connection.session.close()
        elif len(self._connections) > limits.connections_max:
            connection.session.reject(
                RejectCode.TOO_MANY_CONNECTIONS, f"{limits.connections_max} clients are served already"
            )

    def _check_hello(self, session: Session) -> None:
        if session.state is State.HELLO:
            session.reject(
                RejectCode.PROTOCOL_VIOLATION, f"no Hello came within {self._limits.hello_timeout_s:g} s"
            )

    def _closed(self, connection: StreamProtocol) -> None:
        self._connections.pop(connection).cancel()
        self._counters.connections_open = len(self._connections)
        if connection.cut_off:
            self._counters.slow_readers += 1
            log.warning(
                "client %r did not read its answers and was cut off at %d unsent bytes",
                connection.session.client_name,
                self._limits.unsent_bytes_max,
            )
        if not self._connections:
            self._gone.set()

    async def _wait_until_gone(self, timeout_s: float) -> None:
        if self._connections:
            self._gone.clear()
            try:
                await asyncio.wait_for(self._gone.wait(), timeout_s)
            except TimeoutError:
                pass
