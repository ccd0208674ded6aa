"""One client's conversation as a state machine: Hello, requests, answers, Goodbye. No I/O: bytes and times come in
as arguments, bytes go out through the `Peer` that a transport provides.

    HELLO ──Hello──> SERVING ──drain──> DRAINING
      └────────┬─────────┴────────────────┘
               └── Goodbye, end of stream, a wrong frame (Reject), the end of the drain ──> CLOSED

Frames are acted on in the order of arrival, and a frame that is no request only when the requests before it are
answered: so a client's Goodbye finds nothing left to answer, and a wrong frame harms no request before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

import numpy as np

from sigd.daemon.lone import LonePath, lone_path, never
from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.framer import FRAME_BYTES_MAX, Frame, Framer
from sigd.wire.inbox import RequestInbox
from sigd.wire.layout import request_frame_bytes
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome
from sigd.wire.outbox import ResponseOutbox, StatusArray
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, Status, Transport

if TYPE_CHECKING:
    from sigd.daemon.batcher import Batcher
    from sigd.daemon.counters import ClientCounters
    from sigd.daemon.limits import Limits
    from sigd.daemon.peer import Peer

EXCESS_ROWS: Final = 64
"""Room for requests past in_flight_max, so that they can be answered BUSY; what comes past that waits unread."""
CONTROL_FRAMES_A_TURN: Final = 16
"""A client that sends nothing but Heartbeats gets this many answers in one round of the loop; a buffer holds
thousands, which would hold up everybody else for tens of milliseconds."""


class State(Enum):
    """Where a conversation stands."""

    HELLO = "hello"
    SERVING = "serving"
    DRAINING = "draining"
    CLOSED = "closed"


class Session:
    """See the module. A transport calls `writable`, `arrived`, `ended`, `lost`; the batcher takes and answers rows.

    Attributes:
        inbox, outbox: exist from the Welcome on.
        queued: True while the batcher has this session among its ready ones.
        in_batch_rows: pending rows that are in the batch being run, always the oldest.
        conflate: granted in the Welcome.
        client_name: as the client gave it in its Hello.
        writable: gives where the next bytes belong; never empty while reading is not paused.
    """

    __slots__ = (
        "_answered_rows",
        "_counters",
        "_ended",
        "_find_model",
        "_framer",
        "_limits",
        "_lone",
        "_marks",
        "_paused",
        "_yielded",
        "batcher",
        "client_name",
        "conflate",
        "in_batch_rows",
        "in_flight_max",
        "inbox",
        "outbox",
        "peer",
        "queued",
        "state",
        "writable",
    )

    inbox: RequestInbox
    outbox: ResponseOutbox
    batcher: Batcher

    def __init__(
        self,
        peer: Peer,
        find_model: Callable[[str], Batcher | None],
        limits: Limits,
        counters: ClientCounters,
    ) -> None:
        """`find_model` gives the batcher that serves a model's name, "" being the default, or None."""
        self.peer = peer
        self._find_model = find_model
        self._limits = limits
        self._counters = counters
        self._lone: LonePath = never
        self._framer: Framer | None = Framer(FRAME_BYTES_MAX)
        self.writable: Callable[[], memoryview] = self._framer.writable
        self._marks: deque[tuple[int, int, Status]] = deque()
        self._answered_rows = 0
        self._ended = False
        self._paused = False
        self._yielded = False
        self.state = State.HELLO
        self.queued = False
        self.in_batch_rows = 0
        self.conflate = False
        self.client_name = ""
        self.in_flight_max = 0

    # -- the transport's side ----------------------------------------------------------------------------------

    def arrived(self, count_bytes: int, now_ns: int) -> None:
        """`count_bytes` were written at the start of `writable()`, and read at `now_ns`."""
        if self._lone(count_bytes, now_ns):
            return
        if self._framer is not None:
            if self.state is State.HELLO:
                self._framer.arrived(count_bytes)
                self._greet(now_ns)
            return
        if self.state is not State.CLOSED:
            self.inbox.arrived(count_bytes)
            self._scan(now_ns)

    def ended(self, now_ns: int) -> None:
        """The client sends no more. What it sent is answered, then the connection closes."""
        self._ended = True
        if self.state is State.HELLO:
            self._close()
        else:
            self._go_on(now_ns)

    def turn(self, now_ns: int) -> None:
        """The loop's next round has come, see `Peer.yield_turn`."""
        self._yielded = False
        self._read_on()
        self._go_on(now_ns)

    def lost(self) -> None:
        """The connection is gone; nothing can be answered any more. The last call that a transport makes."""
        if self.state is not State.CLOSED:
            self._forget()
        # Peer and session hold each other: let go, for the collector does not run where every microsecond counts.
        self._lone = never
        del self.peer

    # -- the service's side ------------------------------------------------------------------------------------

    def drain(self, code: GoodbyeCode) -> None:
        """Say Goodbye. What is pending is answered, and what still comes is answered DRAINING until `close()`."""
        if self.state is State.HELLO:
            self._close()
        elif self.state is State.SERVING:
            self.state = State.DRAINING
            self.batcher.no_longer_alone(self)
            self.peer.send(Goodbye(code).encode())

    def wind_up(self, now_ns: int) -> None:
        """Read no more; answer what was read, then close."""
        if self.state is not State.CLOSED:
            self._paused = True
            self.peer.pause_reading()
            self.ended(now_ns)

    def close(self) -> None:
        """Close now, whatever is pending."""
        if self.state is not State.CLOSED:
            self._close()

    def reject(self, code: RejectCode, reason: str) -> None:
        """Say why and close."""
        if self.state is not State.CLOSED:
            self._counters.rejects[code] += 1
            self.peer.send(Reject(code, reason).encode())
            self._close()

    # -- the batcher's side ------------------------------------------------------------------------------------

    @property
    def serving(self) -> bool:
        """True between the Welcome and the first Goodbye."""
        return self.state is State.SERVING

    @property
    def closed(self) -> bool:
        """True where nothing can be sent any more."""
        return self.state is State.CLOSED

    @property
    def pending_rows(self) -> int:
        """Requests received and not answered."""
        return self.inbox.rows if self._framer is None else 0

    @property
    def waiting_rows(self) -> int:
        """Requests received and not in a batch yet."""
        return self.inbox.rows - self.in_batch_rows

    @property
    def has_marks(self) -> bool:
        """True where some pending rows have their status already."""
        return bool(self._marks)

    def marked_statuses(self, count: int) -> StatusArray:
        """Statuses given at admission to the oldest `count` pending rows; OK where the model shall decide."""
        statuses = np.zeros(count, np.uint16)
        for first, end, status in self._marks:
            statuses[max(first - self._answered_rows, 0) : max(end - self._answered_rows, 0)] = status
        return statuses

    def answered(self, count: int, now_ns: int) -> None:
        """The oldest `count` pending rows have been sent their answers."""
        if self.state is State.CLOSED:
            return
        self.batcher.pending_rows -= count
        self.inbox.answered(count)
        self._answered_rows += count
        while self._marks and self._marks[0][1] <= self._answered_rows:
            self._marks.popleft()
        self._read_on()
        self._go_on(now_ns)

    def admit(self, count: int) -> None:
        """The newest `count` pending rows wait for a batch; mark those that shall not run."""
        end = self._answered_rows + self.inbox.rows
        excess = max(
            self.inbox.rows - self.in_flight_max,
            self.batcher.pending_rows + count - self._limits.rows_pending_max,
        )
        self.batcher.pending_rows += count
        if self.state is State.DRAINING:
            self._marks.append((end - count, end, Status.DRAINING))
        elif excess > 0:
            self._marks.append((end - min(excess, count), end, Status.BUSY))

    def take_lone(self, count_bytes: int, now_ns: int) -> None:
        """The request that arrived alone becomes a pending row, whose answer is on its way."""
        self.inbox.arrived(count_bytes)
        self.inbox.scan(now_ns)
        self.admit(1)

    # -- inside ------------------------------------------------------------------------------------------------

    def _greet(self, now_ns: int) -> None:
        framer = self._framer
        assert framer is not None
        try:
            frame = framer.next_frame()
            if frame is None:
                return
            if frame.header.template_id != fields.HELLO.template_id:
                raise FrameError(
                    RejectCode.UNEXPECTED_TEMPLATE,
                    f"template {frame.header.template_id} came first, expected Hello (1)",
                )
            welcome = self._open(Hello.decode(frame.block), now_ns)
        except FrameError as error:
            self.reject(error.code, error.reason)
            return
        # A client may send its first requests without waiting for the Welcome: they are in the same buffer.
        early = framer.rest()
        self._framer = None
        self.writable = self.inbox.writable
        self.state = State.SERVING
        self.peer.send(welcome.encode())
        if early:
            # An inbox holds at least what a handshake's buffer holds, less a Hello.
            self.inbox.writable()[: len(early)] = early
            self.inbox.arrived(len(early))
            self._scan(now_ns)

    def _open(self, hello: Hello, now_ns: int) -> Welcome:
        """Check what is asked for and make ready to serve it. Raises FrameError with the code that refuses it."""
        batcher = self._find_model(hello.model_name)
        if batcher is None:
            default = self._find_model("")
            instead = f"{default.spec.name!r} is served, " if default is not None else ""
            raise FrameError(RejectCode.UNKNOWN_MODEL, f"{instead}not {hello.model_name!r}")
        if hello.transport != Transport.STREAM:
            raise FrameError(
                RejectCode.TRANSPORT_UNAVAILABLE, f"transport {hello.transport} is not offered, 0 (stream) is"
            )
        if hello.flags & HelloFlag.DAEMON_WINDOWS:
            raise FrameError(RejectCode.TRANSPORT_UNAVAILABLE, "flag bit 1 (windows) is not served")
        spec = batcher.spec
        for name, asked, served in (
            ("features", hello.features, spec.features),
            ("outputs", hello.outputs, spec.outputs),
        ):
            if asked not in (0, served):
                raise FrameError(RejectCode.SHAPE_MISMATCH, f"{asked} {name}, the model has {served}")
        self.batcher = batcher
        self.client_name = hello.client_name
        self.conflate = bool(hello.flags & HelloFlag.CONFLATE)
        self.in_flight_max = self._limits.in_flight_rows(request_frame_bytes(spec.features))
        self.inbox = RequestInbox(spec.features, self.in_flight_max + EXCESS_ROWS)
        self.outbox = ResponseOutbox(spec.outputs, batcher.batch_rows_max, batcher.generation)
        self._lone = lone_path(self, batcher, batcher.clock)
        return Welcome(
            features=spec.features,
            outputs=spec.outputs,
            in_flight_max=self.in_flight_max,
            model_generation=batcher.generation,
            daemon_pid=self._limits.daemon_pid,
            clock_ns=now_ns,
            model_sha256=spec.sha256,
            model_name=spec.name,
            flags=hello.flags & HelloFlag.CONFLATE,
        )

    def _scan(self, now_ns: int) -> None:
        """Take in what arrived: admit requests, act on other frames, stop reading where there is no more room."""
        inbox = self.inbox
        try:
            for _ in range(CONTROL_FRAMES_A_TURN):
                before = inbox.rows
                frame = inbox.scan(now_ns)
                if inbox.rows > before:
                    self.admit(inbox.rows - before)
                if frame is None:
                    break
                self._act(frame, now_ns)
                if self.state is State.CLOSED:
                    return
            else:
                self._yielded = True
                self.peer.yield_turn()
        except FrameError as error:
            self.reject(error.code, error.reason)
            return
        if self.waiting_rows:
            self.batcher.enqueue(self)
        if not self._paused and (self._yielded or not inbox.writable()):
            self._paused = True
            self.peer.pause_reading()

    def _act(self, frame: Frame, now_ns: int) -> None:
        """Act on a frame that is no request; every request before it is answered."""
        template_id = frame.header.template_id
        if template_id == fields.HEARTBEAT.template_id:
            Heartbeat.decode(frame.block)
            self._counters.heartbeats += 1
            self.peer.send(Heartbeat(now_ns).encode())
        elif template_id == fields.GOODBYE.template_id:
            Goodbye.decode(frame.block)
            if self.state is State.SERVING:  # or it was said already
                self.peer.send(Goodbye(GoodbyeCode.DONE).encode())
            self._close()
        else:
            raise FrameError(
                RejectCode.UNEXPECTED_TEMPLATE, f"template {template_id} is not for a client to send now"
            )

    def _go_on(self, now_ns: int) -> None:
        """Look at what waited for rows to be answered or for its turn; close where nothing more can come."""
        if self.state is State.CLOSED:
            return
        if self.inbox.unscanned_bytes:
            self._scan(now_ns)
        elif self.waiting_rows:
            self.batcher.enqueue(self)
        if self._ended and not (self.closed or self.inbox.rows or self._yielded):
            self._close()

    def _read_on(self) -> None:
        """There may be room again, or it is this session's turn: go on reading, unless nothing more shall come."""
        if self._paused and not self._ended and self.state is not State.CLOSED:
            self._paused = False
            self.peer.resume_reading()

    def _close(self) -> None:
        self._forget()
        self.peer.finish()

    def _forget(self) -> None:
        """Nothing more is answered: what is pending no longer counts."""
        if self._framer is None:
            self.batcher.pending_rows -= self.inbox.rows
            self.batcher.forget(self)
        self.state = State.CLOSED
