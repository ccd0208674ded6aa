"""The connections of clients as they come and go, the bounds on them, and how all are told that the daemon
stops."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING

from sigd.daemon.serving.session import Session
from sigd.daemon.serving.state import State
from sigd.daemon.transport.stream import StreamProtocol, TurnedAway
from sigd.wire.messages import REASON_BYTES_MAX, fit_utf8
from sigd.wire.status import GoodbyeCode, RejectCode

if TYPE_CHECKING:
    from sigd.daemon.config.limits import Limits
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.counters import ClientCounters
    from sigd.daemon.serving.ports import OpenRings
    from sigd.daemon.transport.access_control import Access

log = logging.getLogger(__name__)

DRAIN_GRACE_S = 0.25
"""How long a draining daemon lets clients that were told Goodbye close by themselves."""


class Clients:
    """The connections of one daemon. `accept` is what a listening server makes one with."""

    def __init__(
        self,
        find_model: Callable[[str], Batcher | None],
        access: Access,
        limits: Limits,
        counters: ClientCounters,
        open_rings: OpenRings | None,
    ) -> None:
        """`find_model`, `open_rings`: see `Session`."""
        self._find_model = find_model
        self._access = access
        self._limits = limits
        self._counters = counters
        self._open_rings = open_rings
        # Each with the timer that waits for its Hello.
        self._connections: dict[StreamProtocol, asyncio.TimerHandle] = {}
        self._only: StreamProtocol | None = None
        # Those that may not have said Hello yet, the oldest first. Not looked at before places are rare.
        self._silent: dict[StreamProtocol, None] = {}
        self._by_user: Counter[int] = Counter()
        self._turned_away = TurnedAway()
        self._refusing = False
        self._gone = asyncio.Event()

    def accept(self) -> asyncio.BaseProtocol:
        """A connection that has just been made. Never raises: uvloop would accept no connection any more."""
        try:
            return StreamProtocol(
                lambda peer: Session(peer, self._find_model, self._counters, self._open_rings),
                self._opened,
                self._closed,
                self._limits.unsent_bytes_max,
            )
        except MemoryError:
            with suppress(MemoryError):
                log.error("there is no memory for another connection: it is closed")
            return self._turned_away

    def poll(self) -> bool:
        """For the tick: reads the socket of a connection that is the only one; True where something came."""
        return self._only is not None and self._only.poll()

    def names(self) -> list[str]:
        """What the clients call themselves, sorted; those that have not said Hello yet are left out."""
        return sorted(
            connection.session.client_name
            for connection in self._connections
            if connection.session.state is not State.HELLO
        )

    def open_by(self) -> Counter[tuple[str, int]]:
        """How many are connected, by transport ("shm", or "stream", as every connection is before its Hello)
        and user."""
        return Counter(
            ("shm" if connection.session.has_rings else "stream", connection.credentials.uid)
            for connection in self._connections
        )

    def refuse(self) -> None:
        """Close each new connection from now on: the daemon is stopping."""
        self._refusing = True

    async def drain(self) -> None:
        """Say Goodbye to all, answer what is pending, close, and wait until they are gone or it took too
        long."""
        for connection in list(self._connections):
            connection.session.drain(GoodbyeCode.DRAINING)
        await self._wait_until_gone(DRAIN_GRACE_S)
        now_ns = monotonic_ns()
        for connection in list(self._connections):
            connection.session.wind_up(now_ns)
        await self._wait_until_gone(self._limits.drain_timeout_s)

    def _opened(self, connection: StreamProtocol) -> None:
        self._counters.connections_accepted += 1
        if self._refusing:
            connection.session.close()
        elif (refusal := self._refusal(connection)) is not None:
            self._refuse(connection, *refusal)
        else:
            self._connections[connection] = asyncio.get_running_loop().call_later(
                self._limits.hello_timeout_s, self._check_hello, connection
            )
            self._silent[connection] = None
            self._by_user[connection.credentials.uid] += 1
            self._count_open()

    def _refusal(self, connection: StreamProtocol) -> tuple[RejectCode, str] | None:
        """Why it may not be a client, None where it may. Another may have had to make room for it."""
        limits, peer = self._limits, connection.credentials
        if not self._access.admits(peer, connection.descriptor):
            return RejectCode.NOT_AUTHORISED, f"uid {peer.uid} refused; expected {self._access.expected}"
        if self._by_user[peer.uid] >= limits.connections_per_user_max and not self._make_room(peer.uid):
            return (
                RejectCode.TOO_MANY_CONNECTIONS,
                f"{limits.connections_per_user_max} clients of uid {peer.uid} are served already",
            )
        if len(self._connections) >= limits.connections_max and not self._make_room():
            return RejectCode.TOO_MANY_CONNECTIONS, f"{limits.connections_max} clients are served already"
        return None

    def _make_room(self, uid: int | None = None) -> bool:
        """Evict the oldest connection that has not said Hello, of that user or of all, for another that needs
        its place. False where all have said Hello."""
        for connection in list(self._silent):
            if connection.session.state is not State.HELLO:
                del self._silent[connection]
            elif uid is None or connection.credentials.uid == uid:
                self._leave(connection)
                self._refuse(
                    connection, RejectCode.TOO_MANY_CONNECTIONS, "its place was needed before its Hello came"
                )
                return True
        return False

    def _refuse(self, connection: StreamProtocol, code: RejectCode, reason: str) -> None:
        said = reason
        if len(reason) > REASON_BYTES_MAX:
            # Cut by itself it could end in the first digits of a number.
            said = fit_utf8(reason, REASON_BYTES_MAX - 3).decode() + "..."
        connection.session.reject(code, said)
        # The log has room for all of it.
        connection.session.reject_reason = reason

    def _check_hello(self, connection: StreamProtocol) -> None:
        self._silent.pop(connection, None)
        if connection.session.state is State.HELLO:
            connection.session.reject(
                RejectCode.PROTOCOL_VIOLATION, f"no Hello came within {self._limits.hello_timeout_s:g} s"
            )

    def _closed(self, connection: StreamProtocol) -> None:
        self._leave(connection)
        session = connection.session
        if session.rejected is not None:
            peer = connection.credentials
            self._counters.count_user_reject(session.rejected, peer.uid)
            log.warning(
                "rejected client %r of uid %d, process %d: %s (%d): %s",
                session.client_name,
                peer.uid,
                peer.pid,
                session.rejected.name,
                session.rejected,
                session.reject_reason,
            )
        if connection.cut_off:
            self._counters.slow_readers += 1
            log.warning(
                "client %r did not read its answers and was cut off at %d unsent bytes",
                connection.session.client_name,
                self._limits.unsent_bytes_max,
            )

    def _leave(self, connection: StreamProtocol) -> None:
        """Its place is free. Some never had one, some have left theirs before."""
        timer = self._connections.pop(connection, None)
        if timer is None:
            return
        timer.cancel()
        self._silent.pop(connection, None)
        uid = connection.credentials.uid
        self._by_user[uid] -= 1
        if not self._by_user[uid]:
            del self._by_user[uid]
        self._count_open()
        if not self._connections:
            self._gone.set()

    def _count_open(self) -> None:
        self._counters.connections_open = len(self._connections)
        self._only = next(iter(self._connections)) if len(self._connections) == 1 else None

    async def _wait_until_gone(self, timeout_s: float) -> None:
        if self._connections:
            self._gone.clear()
            try:
                await asyncio.wait_for(self._gone.wait(), timeout_s)
            except TimeoutError:
                pass
