"""One client's conversation as a state machine (daemon.state): Hello, requests, answers, Goodbye. No I/O:
bytes and times come in as arguments, bytes go out through the `Peer` that a transport provides.

Frames are acted on in the order of arrival, and a frame that is no request only when the requests before it
are
answered: so a client's Goodbye finds nothing left to answer, and a wrong frame harms no request before it.
With rings the stream carries everything but requests and answers, and only a Goodbye waits for the requests
before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sigd.daemon.config.limits import FEW_ROWS
from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving.fast_path import (
    FastPath,
    ReceiveRound,
    make_fast_path,
    never,
    receive_nothing,
    run_one_by_one,
)
from sigd.daemon.serving.handshake import Terms, agree, read_hello
from sigd.daemon.serving.row_statuses import RowStatuses
from sigd.daemon.serving.state import State
from sigd.daemon.serving.steps import follow
from sigd.models.carried_state import CarriedStates
from sigd.models.history import StepWindows
from sigd.wire import fields
from sigd.wire.errors import FrameError
from sigd.wire.framer import FRAME_BYTES_MAX, Frame, Framer
from sigd.wire.inbox import RequestInbox
from sigd.wire.messages import Goodbye, Heartbeat, ModelInfo, Reject
from sigd.wire.outbox import ResponseOutbox
from sigd.wire.status import GoodbyeCode, RejectCode, Status

if TYPE_CHECKING:
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.counters import ClientCounters
    from sigd.daemon.serving.ports import OpenRings, Peer, Rings, SessionTap

EXCESS_ROWS: Final = 64
"""Room for requests past in_flight_max, so that they can be answered BUSY; what comes past that waits
unread."""
CONTROL_FRAMES_A_TURN: Final = 16
"""A client that sends nothing but Heartbeats gets this many answers in one round of the loop; a buffer holds
thousands, which would hold up the other clients for tens of milliseconds."""


class Session:
    """See the module. A transport calls `writable`, `arrived`, `ended`, `lost`; the batcher takes and answers
    rows.

    Attributes:
        history: the last steps of its instruments, or their states; None where the client sends whole rows.
        inbox, outbox, tap: exist from the Welcome on. The tap records answers; None where nothing is
            recorded.
        queued: True while the batcher has this session among its ready ones.
        in_batch_rows: pending rows that are in the batch being run, always the oldest.
        conflate, in_flight_max: granted in the Welcome; False and 0 until then.
        generation: of the model that its answers were from last; where the batcher's differs, `attach()`
            comes first.
        client_name: as the client gave it in its Hello.
        row_statuses: which of the pending rows will not run.
        fast_path: offered each request first, once its bytes are in the inbox; what it refuses goes to
            `took`.
        receive_round: reads the stream without the loop, where the fast path can.
        send_answers: where answers go, the peer or the rings.
        writable: gives where the stream's next bytes belong; never empty while reading is not paused.
    """

    __slots__ = (
        "_counters",
        "_ended",
        "_find_model",
        "_framer",
        "_leaving",
        "_open_rings",
        "_paused",
        "_rings",
        "_rows_pending_max",
        "_yielded",
        "batcher",
        "client_name",
        "conflate",
        "fast_path",
        "generation",
        "history",
        "in_batch_rows",
        "in_flight_max",
        "inbox",
        "outbox",
        "peer",
        "queued",
        "receive_round",
        "reject_reason",
        "rejected",
        "row_statuses",
        "send_answers",
        "state",
        "tap",
        "writable",
    )

    inbox: RequestInbox
    outbox: ResponseOutbox
    tap: SessionTap | None
    batcher: Batcher

    def __init__(
        self,
        peer: Peer,
        find_model: Callable[[str], Batcher | None],
        counters: ClientCounters,
        open_rings: OpenRings | None = None,
    ) -> None:
        """`find_model`: see `handshake.agree`. Without `open_rings` shared memory is refused."""
        self.peer = peer
        self.send_answers: Callable[[memoryview], None] = peer.send
        self._find_model = find_model
        self._counters = counters
        self._open_rings = open_rings
        self._rings: Rings | None = None
        self.fast_path: FastPath = never
        self.receive_round: ReceiveRound = receive_nothing
        # For the handshake; with rings, for all that comes on the stream.
        self._framer: Framer | None = Framer(FRAME_BYTES_MAX)
        self.writable: Callable[[], memoryview] = self._framer.writable
        self.row_statuses = RowStatuses()
        self._ended = False
        self._leaving = False
        self._paused = False
        self._yielded = False
        self.state = State.HELLO
        self.rejected: RejectCode | None = None
        self.reject_reason = ""
        self.queued = False
        self.in_batch_rows = 0
        self.conflate = False
        self.generation = 0
        self.history: StepWindows | CarriedStates | None = None
        self.client_name = ""
        self.in_flight_max = 0

    # -- the transport's side

    def arrived(self, count_bytes: int, now_ns: int) -> None:
        """`count_bytes` were written at the start of `writable()`, and read at `now_ns`."""
        if self._framer is not None:
            self._heard(count_bytes, now_ns)
        elif not self.fast_path(count_bytes, now_ns):
            self.took(count_bytes, now_ns)

    def took(self, count_bytes: int, now_ns: int) -> None:
        """`count_bytes` were written at the start of `inbox.writable()`, and the fast path refused them."""
        if self.state is not State.CLOSED:
            count_bytes = run_one_by_one(self, count_bytes, now_ns)
            if count_bytes and not self.closed:
                self.inbox.arrived(count_bytes)
                self._scan(now_ns)

    def ended(self, now_ns: int) -> None:
        """The client sends no more. What it sent is answered, then the connection closes.

        With rings the end of the stream is the end at once: no client is left to take answers.
        """
        self._ended = True
        if self.state is State.HELLO or self._rings is not None:
            self.close()
        else:
            self._go_on(now_ns)

    def turn(self, now_ns: int) -> None:
        """The loop's next round has come, see `Peer.yield_turn`."""
        self._yielded = False
        self._read_on()
        if self._rings is not None:
            self._listen(now_ns)
        self._go_on(now_ns)

    def lost(self) -> None:
        """The connection is gone; nothing can be answered any more. The last call that a transport makes."""
        if self.state is not State.CLOSED:
            self._forget()
        # Peer and session hold each other: let go, for the collector does not run on the hot path.
        self.fast_path, self.receive_round = never, receive_nothing
        self.send_answers = _nowhere
        del self.peer

    # -- the service's side

    def drain(self, code: GoodbyeCode) -> None:
        """Say Goodbye. What is pending is answered, and what still comes is answered DRAINING until
        `close()`."""
        if self.state is State.HELLO:
            self._close()
        elif self.state is State.SERVING:
            self.state = State.DRAINING
            self.batcher.disown_fast_path(self)
            if self._rings is not None:
                self._rings.recall()
            self.peer.send(Goodbye(code).encode())

    def wind_up(self, now_ns: int) -> None:
        """Read no more; answer what was read, then close."""
        if self.state is State.HELLO:
            self._close()
        elif self.state is not State.CLOSED:
            self._paused = True
            self.peer.pause_reading()
            if self._rings is not None:
                self._rings.stop()
            self._ended = True
            self._go_on(now_ns)

    def close(self) -> None:
        """Close now, whatever is pending."""
        if self.state is not State.CLOSED:
            self._close()

    def reject(self, code: RejectCode, reason: str) -> None:
        """Say why and close."""
        if self.state is not State.CLOSED:
            self._counters.rejects[code] += 1
            self.rejected, self.reject_reason = code, reason
            self.peer.send(Reject(code, reason).encode())
            self._close()

    # -- the batcher's side

    @property
    def serving(self) -> bool:
        """True between the Welcome and the first Goodbye."""
        return self.state is State.SERVING

    @property
    def at_rest(self) -> bool:
        """True while it is served, nothing of it waits, and no end of it has been said."""
        return self.state is State.SERVING and not (self.inbox.rows or self._leaving or self._ended)

    @property
    def closed(self) -> bool:
        """True where nothing can be sent any more."""
        return self.state is State.CLOSED

    @property
    def has_rings(self) -> bool:
        """True where requests and answers go through shared memory."""
        return self._rings is not None

    @property
    def answers_steps(self) -> bool:
        """True where a step is answered from what the backend kept of the steps before."""
        return isinstance(self.history, StepWindows) and self.history.stepped is not None

    @property
    def waiting_rows(self) -> int:
        """Requests received and not in a batch yet."""
        return self.inbox.rows - self.in_batch_rows

    def answered(self, count: int, now_ns: int) -> None:
        """The oldest `count` pending rows have been sent their answers."""
        if self.state is State.CLOSED:
            return
        self.batcher.pending_rows -= count
        self.inbox.answered(count)
        self.row_statuses.answered(count)
        self._read_on()
        self._go_on(now_ns)

    def admit(self, count: int) -> None:
        """The newest `count` pending rows wait for a batch; mark those that will not run."""
        mine = self.inbox.rows
        # Or a few clients that ask for much would have all others turned away.
        too_many_pending = min(self.batcher.pending_rows + count - self._rows_pending_max, mine - FEW_ROWS)
        excess = max(mine - self.in_flight_max, too_many_pending)
        self.batcher.pending_rows += count
        if self.state is State.DRAINING:
            self.row_statuses.set_newest(count, mine, Status.DRAINING)
        elif excess > 0:
            self.row_statuses.set_newest(min(excess, count), mine, Status.BUSY)

    def detach(self) -> None:
        """The batcher gets another model: let go of the one that it had."""
        self.fast_path, self.receive_round = never, receive_nothing
        if self._rings is not None:
            self._rings.detach()
        if isinstance(self.history, StepWindows):
            self.history.follow_by(None)

    def attach(self) -> None:
        """From now on answers are from the batcher's model, and the fast path leads there."""
        batcher = self.batcher
        self.generation = batcher.generation
        self.outbox = ResponseOutbox(batcher.spec.answer_values, batcher.batch_rows_max, batcher.generation)
        if (state := batcher.spec.state) is not None:
            # The states of two models do not mix.
            self.history = (
                self.history.anew(state)
                if isinstance(self.history, CarriedStates)
                else CarriedStates(state, batcher.limits.history_instruments_max)
            )
        self.tap = batcher.open_tap(self, in_rings=self._rings is not None)
        if isinstance(self.history, StepWindows):
            follow(self.history, batcher.backend)
        self.fast_path, self.receive_round = never, receive_nothing
        if native_fast_path.serves(self):
            self.fast_path, self.receive_round = native_fast_path.make_stream(self, batcher, batcher.clock)
        elif self.history is None:
            self.fast_path = make_fast_path(self, batcher, batcher.clock)
        if self._rings is not None:
            # The stream carries no requests.
            self.receive_round = receive_nothing
            self._rings.attach()

    def admit_one(self, count_bytes: int, now_ns: int) -> None:
        """The request that arrived alone becomes a pending row, whose answer is on its way."""
        self.inbox.arrived(count_bytes)
        self.inbox.scan(now_ns)
        self.admit(1)

    # -- inside

    def _heard(self, count_bytes: int, now_ns: int) -> None:
        """Bytes of the handshake, or of what a client with rings says besides."""
        if self.state is State.CLOSED:
            return
        assert self._framer is not None
        self._framer.arrived(count_bytes)
        if self.state is State.HELLO:
            self._greet(self._framer, now_ns)
        else:
            self._listen(now_ns)

    def _greet(self, framer: Framer, now_ns: int) -> None:
        try:
            frame = framer.next_frame()
            if frame is None:
                return
            hello = read_hello(frame)
            # The log names the client also where it is refused.
            self.client_name = hello.client_name
            terms = agree(hello, self._find_model, rings_offered=self._open_rings is not None)
            self._open(terms)
        except FrameError as error:
            self.reject(error.code, error.reason)
            return
        except MemoryError:
            self.reject(RejectCode.TOO_MANY_CONNECTIONS, "the daemon has no memory for another client")
            return
        self.state = State.SERVING
        rings = self._rings
        welcome = terms.welcome(None if rings is None else rings.layout, now_ns).encode()
        if rings is not None:
            self.peer.send_descriptors(welcome, rings.descriptors)
            rings.start()
            self._listen(now_ns)
            return
        # A client may send its first requests without waiting for the Welcome: they are in the same buffer.
        early = framer.rest()
        self._framer = None
        self.writable = self.inbox.writable
        self.peer.send(welcome)
        if early:
            # An inbox holds at least what a handshake's buffer holds, less a Hello.
            self.inbox.writable()[: len(early)] = early
            self.inbox.arrived(len(early))
            self._scan(now_ns)

    def _open(self, terms: Terms) -> None:
        """Make ready to serve a client on these terms. Raises FrameError with the code that refuses its
        rings."""
        self.batcher = batcher = terms.batcher
        self._rows_pending_max = batcher.limits.rows_pending_max
        if terms.ring_slots:
            assert self._open_rings is not None, "terms with rings, though none are offered"
            if refused := self.peer.why_no_descriptors():
                raise FrameError(RejectCode.TRANSPORT_UNAVAILABLE, refused)
            self._rings = self._open_rings(self, terms.ring_slots, terms.features)
            self.send_answers = self._rings.send
        self.client_name = terms.client_name
        self.conflate = terms.conflate
        if terms.window is not None:
            self.history = StepWindows(terms.window, batcher.limits.history_instruments_max)
        self.inbox = RequestInbox(terms.features, terms.in_flight_max + EXCESS_ROWS)
        batcher.join(self)
        # From here on there is something to forget.
        self.in_flight_max = terms.in_flight_max
        self.attach()

    def _scan(self, now_ns: int) -> None:
        """Take in what arrived: admit requests, act on other frames, stop reading where there is no more
        room."""
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
                self._yield()
        except FrameError as error:
            self.reject(error.code, error.reason)
            return
        if self.waiting_rows:
            self.batcher.enqueue(self)
        if not self._paused and (self._yielded or not inbox.writable()):
            self._paused = True
            self.peer.pause_reading()

    def _listen(self, now_ns: int) -> None:
        """Act on what a client with rings says besides requests."""
        framer = self._framer
        assert framer is not None
        try:
            for _ in range(CONTROL_FRAMES_A_TURN):
                if self.state is State.CLOSED or (frame := framer.next_frame()) is None:
                    return
                if frame.header.template_id == fields.GOODBYE.template_id:
                    Goodbye.decode(frame.block)
                    self._leaving = True
                    self._go_on(now_ns)
                else:
                    self._act(frame, now_ns)
        except FrameError as error:
            self.reject(error.code, error.reason)
            return
        self._yield()
        if not self._paused:
            self._paused = True
            self.peer.pause_reading()

    def _yield(self) -> None:
        self._yielded = True
        self.peer.yield_turn()

    def _act(self, frame: Frame, now_ns: int) -> None:
        """Act on a frame that is no request; every request before it is answered."""
        template_id = frame.header.template_id
        if template_id == fields.HEARTBEAT.template_id:
            Heartbeat.decode(frame.block)
            self._counters.heartbeats += 1
            self.peer.send(Heartbeat(now_ns).encode())
        elif template_id == fields.MODEL_INFO.template_id:
            asked = ModelInfo.decode(frame.block)
            self.peer.send(self.batcher.describe(asked.model_generation).encode())
        elif template_id == fields.GOODBYE.template_id:
            Goodbye.decode(frame.block)
            self._part()
        else:
            raise FrameError(
                RejectCode.UNEXPECTED_TEMPLATE, f"template {template_id} is not for a client to send now"
            )

    def _part(self) -> None:
        """The client's Goodbye has been said, and nothing before it is left to answer."""
        if self.state is State.SERVING:  # or it was said already
            self.peer.send(Goodbye(GoodbyeCode.DONE).encode())
        self._close()

    def _go_on(self, now_ns: int) -> None:
        """Look at what waited for rows to be answered or for its turn; close where nothing more can come."""
        if self.state is State.CLOSED:
            return
        if self._leaving and not self.inbox.rows:
            self._leave(now_ns)
        elif self._rings is None and self.inbox.unscanned_bytes:
            self._scan(now_ns)
        elif self.waiting_rows:
            self.batcher.enqueue(self)
        if self._ended and not (self.closed or self.inbox.rows or self._yielded):
            self._close()

    def _leave(self, now_ns: int) -> None:
        """End the session of a client with rings, once its requests before its Goodbye are answered."""
        assert self._rings is not None
        if self._ended or not self._rings.take(now_ns, self.in_flight_max):
            self._part()
        elif not self.closed and not self.inbox.rows:
            # It was one request, and answered at once: there may be one more.
            self._yield()

    def _read_on(self) -> None:
        """There may be room again, or it is this session's turn: go on reading, unless nothing more shall
        come."""
        if self._paused and not (self._ended or self._yielded or self.state is State.CLOSED):
            self._paused = False
            self.peer.resume_reading()

    def _close(self) -> None:
        self._forget()
        self.peer.finish()

    def _forget(self) -> None:
        """Nothing more is answered: what is pending no longer counts."""
        if self.in_flight_max:
            self.batcher.pending_rows -= self.inbox.rows
            self.batcher.forget(self)
        if self._rings is not None:
            self._rings.close()
            self._rings = None
        self.state = State.CLOSED


def _nowhere(_answers: memoryview) -> None:
    """Takes the answers of a connection that is gone."""
