"""The composition root: opens the model, warms it up, listens, serves, drains."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from time import monotonic_ns

from sigd import __version__
from sigd.daemon.admin import AdminServer, LatencyStatus, ModelStatus, Status
from sigd.daemon.batcher import Batcher
from sigd.daemon.config import Config
from sigd.daemon.counters import Counters, LatencyCounts
from sigd.daemon.idle import Ticker
from sigd.daemon.listener import BACKLOG, Listener
from sigd.daemon.process import freeze_garbage, ignore_overflow, lock_memory, resident_bytes
from sigd.daemon.session import Session, State
from sigd.daemon.stream import StreamProtocol
from sigd.daemon.warmth import Warmth
from sigd.models.backend import Backend
from sigd.models.errors import BackendFailed
from sigd.wire.status import GoodbyeCode, RejectCode
from sigd.wire.status import Status as AnswerStatus

log = logging.getLogger(__name__)

DRAIN_GRACE_S = 0.25
"""How long a draining daemon lets clients that were told Goodbye close by themselves."""


class Service:
    """One daemon, from an open backend to its last answer."""

    def __init__(self, config: Config, backend: Backend) -> None:
        self._config = config
        self._backend = backend
        self._limits = config.limits()
        self._counters = Counters(backend.batch_rows_max)
        # Each with the timer that waits for its Hello.
        self._connections: dict[StreamProtocol, asyncio.TimerHandle] = {}
        self._started_ns = monotonic_ns()
        self._stop = asyncio.Event()
        self._gone = asyncio.Event()
        self._failure: BackendFailed | None = None

    @property
    def device_failed(self) -> bool:
        """Whether it ended because the model's device did: nothing may wait for that device any more."""
        return self._failure is not None

    async def run(self) -> int:
        """Serve until told to stop; the exit code.

        Raises:
            DaemonError: a socket cannot be opened.
        """
        loop = asyncio.get_running_loop()
        config = self._config
        ignore_overflow()
        self._batcher = Batcher(
            self._backend,
            self._counters,
            monotonic_ns,
            wake=lambda: self._ticker.wake(),
            on_fatal=self._die,
            linger_ns=config.linger_us * 1000,
        )
        self._ticker = Ticker(
            loop,
            config.idle,
            self._batcher.poll,
            lambda: self._batcher.last_batch_ns,
            monotonic_ns,
            config.backoff_spin_us * 1000,
            self._batcher.rest,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        mode = int(config.socket_mode, 8)
        with (
            Listener(config.socket_path, mode) as listener,
            Listener(config.admin_socket_path, mode) as asked,
        ):
            admin = AdminServer(self._status)
            await admin.start(asked.socket)
            server = await loop.create_unix_server(self._accept, sock=listener.socket, backlog=BACKLOG)
            if config.lock_memory:
                lock_memory()
            freeze_garbage()
            self._ticker.start()
            warmth = Warmth(loop, self._backend, self._batcher, config.keep_warm_us / 1e6, self._die)
            warmth.start()
            self._say_ready()
            await self._stop.wait()
            # The way here ends first: another daemon may take the place while this one drains.
            for end in (warmth.stop, listener.remove, asked.remove, server.close, admin.close):
                end()
            complete = await self._drain()
        self._ticker.stop()
        self._backend.close()
        if self._failure is not None:
            log.critical("stopped: the model's device failed and cannot be used any more: %s", self._failure)
            return 1
        return 0 if complete else 1

    # -- connections -------------------------------------------------------------------------------------------

    def _accept(self) -> StreamProtocol:
        return StreamProtocol(
            lambda peer: Session(peer, self._find_model, self._limits, self._counters),
            self._opened,
            self._closed,
            self._limits.unsent_bytes_max,
        )

    def _find_model(self, name: str) -> Batcher | None:
        return self._batcher if name in ("", self._batcher.spec.name) else None

    def _opened(self, connection: StreamProtocol) -> None:
        limits = self._limits
        self._counters.connections_accepted += 1
        self._connections[connection] = asyncio.get_running_loop().call_later(
            limits.hello_timeout_s, self._check_hello, connection.session
        )
        self._counters.connections_open = len(self._connections)
        if self._stop.is_set():
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

    # -- the end -----------------------------------------------------------------------------------------------

    def _die(self, failure: BackendFailed) -> None:
        self._failure = failure
        self._stop.set()

    async def _drain(self) -> bool:
        """Say Goodbye to all, answer what is pending, close. True where everything accepted was answered."""
        for connection in list(self._connections):
            connection.session.drain(GoodbyeCode.DRAINING)
        await self._wait_until_gone(DRAIN_GRACE_S)
        now_ns = monotonic_ns()
        for connection in list(self._connections):
            connection.session.wind_up(now_ns)
        await self._wait_until_gone(self._limits.drain_timeout_s)
        unanswered = self._batcher.pending_rows
        if unanswered:
            log.error("%d requests were not answered within %g s", unanswered, self._limits.drain_timeout_s)
        return not unanswered

    async def _wait_until_gone(self, timeout_s: float) -> None:
        if self._connections:
            self._gone.clear()
            try:
                await asyncio.wait_for(self._gone.wait(), timeout_s)
            except TimeoutError:
                pass

    # -- what is said ------------------------------------------------------------------------------------------

    def _say_ready(self) -> None:
        spec = self._backend.spec
        core = "" if self._config.cpu is None else f" cpu={self._config.cpu}"
        line = (
            f"sigd ready: socket={_printable(self._config.socket_path)} model={_printable(spec.name)}"
            f" ({spec.features} -> {spec.outputs}) sha256={spec.sha256.hex()[:16]} backend={self._backend.name}"
            f" idle={self._config.idle.value}{core}"
        )
        try:
            print(line, flush=True)
        except OSError as error:
            log.warning("standard output cannot be written to: %s", error.strerror)
            # What is still buffered would fail once more at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _status(self) -> Status:
        spec = self._backend.spec
        counters = self._counters
        return Status(
            version=__version__,
            pid=self._limits.daemon_pid,
            uptime_ns=monotonic_ns() - self._started_ns,
            socket=_printable(self._config.socket_path),
            idle=self._config.idle.value,
            model=ModelStatus(
                name=_printable(spec.name),
                path=_printable(spec.path),
                sha256=spec.sha256.hex(),
                generation=self._batcher.generation,
                features=spec.features,
                outputs=spec.outputs,
                backend=self._backend.name,
                batch_rows_max=self._backend.batch_rows_max,
            ),
            clients=sorted(
                connection.session.client_name
                for connection in self._connections
                if connection.session.state is not State.HELLO
            ),
            connections_open=counters.connections_open,
            connections_accepted=counters.connections_accepted,
            pending_rows=self._batcher.pending_rows,
            heartbeats=counters.heartbeats,
            slow_readers=counters.slow_readers,
            resident_bytes=resident_bytes(),
            answers={status.name: counters.by_status[status] for status in AnswerStatus},
            rejects={code.name: counters.rejects[code] for code in RejectCode if counters.rejects[code]},
            batches_by_rows={rows: count for rows, count in enumerate(counters.batches_by_rows) if count},
            total=_latency(counters.total),
            queue=_latency(counters.queue),
            infer=_latency(counters.model),
        )


def _printable(path: Path | str) -> str:
    """A path may hold bytes that are no UTF-8; they are shown as U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def _latency(counts: LatencyCounts) -> LatencyStatus:
    return LatencyStatus(counts.sparse(), counts.max_ns)
