"""The admin socket: one JSON line asked, one JSON line answered. The daemon hands out its counts as they are;
percentiles are worked out by the asker, so that a question costs the hot path as little as it can.

    {"op": "status"}  ->  a `Status`
    {"op": "reload", "model": "/models/new.onnx"}  ->  a `ReloadAnswer`, once it is served or is not
    {"op": "drain"}  ->  a `DrainAnswer`, once everything accepted is answered

A first line of HTTP, such as GET /metrics HTTP/1.1, is answered as that.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Self, TypeVar

import msgspec

from sigd.daemon.errors import DaemonError, EnvironmentLacks
from sigd.daemon.metrics.http import Pages, is_http, respond
from sigd.daemon.shadow.status import ShadowStatus

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 4096
ANSWER_TIMEOUT_S = 5.0
_FINISH_LOOK_S = 0.001
ASKERS_MAX = 16
"""Who asks while so many are waiting for their answer is turned away."""

Bins = list[tuple[int, int]]
"""Counts of durations that are not zero: (upper edge in ns, count), ascending."""


class LatencyStatus(msgspec.Struct, frozen=True):
    """Durations since the start, in ns; bins are 128 ns wide up to 1.05 ms, then 131 us."""

    bins: Bins
    max_ns: int


class ModelStatus(msgspec.Struct, frozen=True):
    """A model that is being served, with its own counters: see daemon.counters.ModelCounters for what each counts."""

    name: str
    path: str
    sha256: str
    generation: int
    features: int
    outputs: int
    backend: str
    batch_rows_max: int
    pending_rows: int
    waiting_rows: int
    answers: dict[str, int]
    batches_by_rows: dict[int, int]
    total: LatencyStatus
    queue: LatencyStatus
    infer: LatencyStatus
    shadow: ShadowStatus | None = None
    reloads: int = 0
    reloads_refused: int = 0


class LoopStatus(msgspec.Struct, frozen=True):
    """How the loop and its thread fare: see daemon.health for what each counts."""

    looks: int
    stalls: int
    stalled_ns: int
    worst_ns: int
    collections: int
    collecting_ns: int
    cpu_s: float
    minor_faults: int
    major_faults: int
    voluntary_switches: int
    involuntary_switches: int
    runnable_s: float | None


class RecorderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How recording goes.

    Attributes:
        recording: the directory and the name of its files.
        requests: recorded since the start.
        dropped: answered, but not recorded: the ring was full.
        stored_bytes: of the recording; the rest of `written_bytes` is in the ring.
        paused_because: why nothing is being stored; empty where all is well.
    """

    recording: str
    requests: int
    dropped: int
    written_bytes: int
    stored_bytes: int
    paused_because: str


class Status(msgspec.Struct, frozen=True):
    """A daemon's counters. See daemon.counters.ClientCounters for what each one of its clients counts.

    Attributes:
        transports: connections that are open, by transport.
        models: what is served, the default model first.
        recorder: None where nothing is recorded.
    """

    version: str
    pid: int
    uptime_ns: int
    socket: str
    idle: str
    clients: list[str]
    transports: dict[str, int]
    connections_open: int
    connections_accepted: int
    heartbeats: int
    slow_readers: int
    resident_bytes: int
    rejects: dict[str, int]
    loop: LoopStatus
    models: list[ModelStatus]
    recorder: RecorderStatus | None = None


class AdminRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What may be asked.

    Attributes:
        name: reload: which model, "" being the default one, or without `model` all of them.
        model: reload: the file, an absolute path; "" is the one that is served.
        allow_new_shape: reload: see `Reloader.reload`.
    """

    op: str
    name: str = ""
    model: str = ""
    allow_new_shape: bool = False


class ModelReload(msgspec.Struct, frozen=True):
    """How the reload of one model went.

    Attributes:
        error: why it still is what it was; "" where it is the new one.
        path, sha256, generation, features, outputs, backend: what is served now.
        seconds: how long it took.
        withdrawn: clients that were told to go, for the shape that they were promised is served no more.
    """

    name: str
    error: str
    path: str
    sha256: str
    generation: int
    features: int
    outputs: int
    backend: str
    seconds: float
    withdrawn: int


class ReloadAnswer(msgspec.Struct, frozen=True):
    """How a reload went, for each model that was to be reloaded."""

    models: list[ModelReload]


class DrainAnswer(msgspec.Struct, frozen=True):
    """How the daemon ends.

    Attributes:
        exit_code: 0 where everything that was accepted is answered.
    """

    exit_code: int


class AdminError(msgspec.Struct):
    """The answer to a question that could not be answered."""

    error: str


Answer = TypeVar("Answer", bound=msgspec.Struct)

Op = Callable[[AdminRequest], Awaitable[msgspec.Struct]]
"""Works out the answer to one kind of question."""


class AdminServer:
    """Answers on an open listener until it is closed.

    Args:
        ops: what may be asked, by name; where there are none, only HTTP is spoken.
        pages: what may be asked over HTTP.
        timeout_s: for a question to come and for its answer to be taken; how long an answer takes is the op's business.
        every_s: how long the next connection waits in the kernel's queue after one was accepted, for a listener that
            anybody may ask, as fast as he likes: each question takes time from the loop. 0 accepts all at once.
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
        self._askers = 0
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
        """Wait until whoever has asked has the answer, or does not take it."""
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
                log.warning("somebody who asks cannot be answered: %s", error)
            await asyncio.sleep(self._every_s)

    async def _serve_on(self, connection: socket.socket) -> None:
        try:
            streams = await asyncio.open_connection(sock=connection, limit=REQUEST_BYTES_MAX)
        except OSError as error:
            connection.close()
            log.warning("somebody who asks cannot be answered: %s", error)
        else:
            await self._serve(*streams)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._askers += 1
        try:
            if self._askers <= ASKERS_MAX:
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
            # The asker went away, or keeps silent: nobody is left to tell.
            pass
        finally:
            self._askers -= 1
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


class Asker:
    """Whoever asks a running daemon, for use in a `with` block.

    Raises:
        EnvironmentLacks: nobody answers there, from here on or from any call.
    """

    def __init__(self, admin_socket: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._admin_socket = admin_socket
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(timeout_s)

    def __enter__(self) -> Self:
        try:
            self._connection.connect(str(self._admin_socket))
        except OSError as error:
            self._connection.close()
            raise self._lacking(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def daemon_pid(self) -> int:
        """The kernel's word on who answers; 0 where it is in a namespace that cannot be seen from here."""
        credentials = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder)

    def ask(self, request: AdminRequest, kind: type[Answer], *, patiently: bool = False) -> Answer:
        """The answer to a question.

        Args:
            kind: of the answer.
            patiently: it may take as long as it takes.

        Raises:
            DaemonError: the daemon's reason why it gives none.
        """
        answer = bytearray()
        try:
            # Who closes without having read the question may still have said something before.
            with suppress(BrokenPipeError):
                self._connection.sendall(msgspec.json.encode(request) + b"\n")
            if patiently:
                self._connection.settimeout(None)
            with suppress(ConnectionResetError):
                while not answer.endswith(b"\n") and (part := self._connection.recv(1 << 16)):
                    answer += part
        except OSError as error:
            raise self._lacking(error) from None
        if not answer:
            raise EnvironmentLacks(
                f"{self._admin_socket}: the daemon has ended without an answer: see its log"
            )
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise _no_answer(self._admin_socket, answer, kind, error) from None

    def _lacking(self, error: OSError) -> EnvironmentLacks:
        if isinstance(error, PermissionError):
            return EnvironmentLacks(
                f"{self._admin_socket}: the daemon may not be asked by user {os.geteuid()}: ask as its own user or as root,"
                ' or let its group ask too, with admin_socket_mode = "0660" in its configuration'
            )
        return EnvironmentLacks(
            f"{self._admin_socket}: no daemon answers there ({error.strerror or error}); start one with: sigd serve"
        )


def _no_answer(admin_socket: Path, answer: bytearray, kind: type, error: msgspec.DecodeError) -> DaemonError:
    """What to raise for bytes that are not an answer of that kind."""
    try:
        return DaemonError(msgspec.json.decode(answer, type=AdminError).error)
    except msgspec.DecodeError:
        return EnvironmentLacks(f"{admin_socket}: the answer is no {kind.__name__}: {error}")


def ask_status(admin_socket: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> Status:
    """Ask a running daemon for its counters.

    Raises:
        EnvironmentLacks: nobody answers there.
    """
    with Asker(admin_socket, timeout_s) as asker:
        return asker.ask(AdminRequest("status"), Status)


def percentile_ns(bins: Bins, percent: float) -> int:
    """The upper edge of the bin that holds the given percentile, 0 where nothing was counted.

    >>> percentile_ns([(128, 98), (256, 1), (1024, 1)], 99.0)
    256
    """
    rank = sum(count for _, count in bins) * percent / 100
    seen = 0
    for edge_ns, count in bins:
        seen += count
        if seen >= rank:
            return edge_ns
    return 0
