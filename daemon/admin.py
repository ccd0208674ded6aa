"""The admin socket: one JSON line asked, one JSON line answered. The daemon hands out its counts as they are;
percentiles are worked out by the asker, so that a question costs the hot path as little as it can.

    {"op": "status"}  ->  a `Status`

A first line of HTTP, such as GET /metrics HTTP/1.1, is answered as that.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from sigd.daemon.errors import EnvironmentLacks
from sigd.daemon.metrics.http import Pages, is_http, respond

REQUEST_BYTES_MAX = 4096
ANSWER_TIMEOUT_S = 5.0
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


class AdminRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What may be asked."""

    op: str


class AdminError(msgspec.Struct):
    """The answer to a question that could not be answered."""

    error: str


Op = Callable[[AdminRequest], Awaitable[msgspec.Struct]]
"""Works out the answer to one kind of question."""


class AdminServer:
    """Answers on an open listener until it is closed.

    Args:
        ops: what may be asked, by name; where there are none, only HTTP is spoken.
        pages: what may be asked over HTTP.
        timeout_s: for one question and its answer.
    """

    def __init__(
        self, ops: Mapping[str, Op], pages: Pages | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self._ops = ops
        self._pages = pages or {}
        self._timeout_s = timeout_s
        self._askers = 0
        self._server: asyncio.AbstractServer | None = None
        self._encoder = msgspec.json.Encoder()

    async def start(self, listener: socket.socket) -> None:
        """Begin to answer."""
        # start_unix_server() would on some versions of Python remove the file, which may not be ours.
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=REQUEST_BYTES_MAX)

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._askers += 1
        try:
            if self._askers <= ASKERS_MAX:
                async with asyncio.timeout(self._timeout_s):
                    writer.write(await self._answer(reader))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            # The asker went away, or keeps silent: nobody is left to tell.
            pass
        finally:
            self._askers -= 1
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
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
        return self._encoded(await op(request))

    def _encoded(self, answer: msgspec.Struct) -> bytes:
        return self._encoder.encode(answer) + b"\n"


def ask_status(admin_socket: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> Status:
    """Ask a running daemon for its counters.

    Raises:
        EnvironmentLacks: nobody answers there.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(admin_socket))
            connection.sendall(b'{"op": "status"}\n')
            answer = bytearray()
            while not answer.endswith(b"\n"):
                part = connection.recv(1 << 16)
                if not part:
                    break
                answer += part
    except PermissionError:
        raise EnvironmentLacks(
            f"{admin_socket}: the daemon may not be asked by user {os.geteuid()}: ask as its own user or as root, or let its"
            ' group ask too, with admin_socket_mode = "0660" in its configuration'
        ) from None
    except OSError as error:
        raise EnvironmentLacks(
            f"{admin_socket}: no daemon answers there ({error.strerror or error}); start one with: sigd serve"
        ) from None
    try:
        return msgspec.json.decode(answer, type=Status)
    except msgspec.DecodeError as error:
        raise EnvironmentLacks(f"{admin_socket}: the answer is not a status: {error}") from None


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
