"""Policy of batching: who is in the next batch, what runs, and who gets which answer. No I/O, and no waiting.

Batching is opportunistic: what has arrived while the last batch ran is the next one, at most `batch_rows_max` rows,
filled in turn from the connections that have something. A lone request never waits for company; where nobody else
is talking it does not even wait for the loop's next round. Every row of a connection is answered in its order, the
rows that do not run (expired, busy, bad input, conflated, draining) among them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from math import inf, isfinite
from typing import TYPE_CHECKING, Final

from sigd.daemon.screening import Segment, fail_all, fail_rows_without_a_number, screen
from sigd.models.errors import BackendFailed
from sigd.wire.layout import (
    REQUEST_CLIENT_TIME_WORD,
    REQUEST_DEADLINE_WORD,
    REQUEST_INSTRUMENT_WORD,
    REQUEST_SEQUENCE_WORD,
    outcome_word,
)
from sigd.wire.status import Status

if TYPE_CHECKING:
    from sigd.daemon.counters import Counters
    from sigd.daemon.session import Session
    from sigd.models.backend import Backend
    from sigd.models.spec import ModelSpec

log = logging.getLogger(__name__)

_FAILURE_LOG_INTERVAL_NS: Final = 1_000_000_000
_LONE_OUTCOME: Final = outcome_word(0, Status.OK, 1)
_U32: Final = 0xFFFF_FFFF
SEGMENT_ROWS_MIN: Final = 16
"""Least that a busy connection may put into a batch before the next one's turn: each turn costs about 10 us of
NumPy calls, whatever its rows, so turns of a few rows each would halve the throughput."""


class Batcher:
    """One model, its backend, and the sessions that it serves.

    Attributes:
        spec: the model that is served.
        generation: rises by one with each swap of the model.
        batch_rows_max: the backend's.
        pending_rows: requests admitted and not answered, over all sessions.
        last_batch_ns: when the last batch ended, on `clock`.
    """

    def __init__(
        self,
        backend: Backend,
        counters: Counters,
        clock: Callable[[], int],
        *,
        wake: Callable[[], None],
        on_fatal: Callable[[BackendFailed], None],
        linger_ns: int = 0,
        generation: int = 1,
    ) -> None:
        """
        Args:
            backend: open.
            clock: CLOCK_MONOTONIC in ns.
            wake: called when there is work for `poll()`.
            on_fatal: called once the requests in flight are answered after a failure that the process cannot survive.
            linger_ns: how long a batch that is not full waits for more rows.
        """
        self.spec: ModelSpec = backend.spec
        self.batch_rows_max = backend.batch_rows_max
        self.generation = generation
        self.pending_rows = 0
        self.last_batch_ns = clock()
        self._backend = backend
        self._counters = counters
        self._clock = clock
        self._wake = wake
        self._on_fatal = on_fatal
        self._linger_ns = linger_ns
        self._lingering_since_ns = 0
        self._ready: deque[Session] = deque()
        self._segments: list[Segment] = []
        self._submitted_ns = 0
        self._last_talker: Session | None = None
        self._failure_logged_ns = -_FAILURE_LOG_INTERVAL_NS
        # What the shortest way needs at hand: row 0 of the model's arrays, as bytes and as a vector.
        self._submit = backend.submit
        self._lone_input = backend.inputs[0]
        self._lone_input_bytes = backend.inputs[:1].data.cast("B")
        self._lone_input_dot = self._lone_input.dot
        self._lone_output_bytes = backend.outputs[:1].data.cast("B")
        self._lone_output_floats = self._lone_output_bytes.cast("f")

    # -- the sessions' side ------------------------------------------------------------------------------------

    def lone(self, session: Session, now_ns: int) -> None:
        """The session's one pending row has just arrived, stamped `now_ns`, and nothing stands before or behind it.

        It runs at once where that keeps nobody from joining: nobody else waits, and nobody else talked last.
        """
        if (
            session is not self._last_talker
            or self._ready
            or self._segments
            or not self._backend.synchronous
            or self._linger_ns
        ):
            session.admit(1)
            self.enqueue(session)
            return
        words = session.inbox.words
        self._lone_input_bytes[:] = session.lone_features
        deadline_ns = words[REQUEST_DEADLINE_WORD]
        # float() of a NumPy scalar costs more than comparing it; an overflow to inf is sorted out by the full way
        if not self._lone_input_dot(self._lone_input) < inf or (deadline_ns and deadline_ns < now_ns):
            session.admit(1)
            self.enqueue(session)
            return
        clock = self._clock
        start_ns = clock()
        try:
            self._submit(1)
        except BackendFailed as error:
            session.admit(1)
            self._fail([Segment(session, 1, None, 0, 1)], error)
            return
        end_ns = clock()
        infer_ns = end_ns - start_ns
        if not isfinite(sum(self._lone_output_floats)) or (deadline_ns and deadline_ns < end_ns):
            session.admit(1)
            self._submitted_ns = start_ns
            self._segments = [Segment(session, 1, None, 0, 1)]
            self._complete(end_ns)
            return
        outbox = session.outbox
        outbox.encode_lone(
            words[REQUEST_SEQUENCE_WORD],
            words[REQUEST_CLIENT_TIME_WORD],
            now_ns,
            end_ns,
            words[REQUEST_INSTRUMENT_WORD] & _U32,
            _LONE_OUTCOME | infer_ns if infer_ns <= _U32 else outcome_word(infer_ns, Status.OK, 1),
            self._lone_output_bytes,
        )
        session.peer.send(outbox.lone)
        # From here on the answer is under way: what is counted now costs nobody's latency.
        session.lone_answered()
        self.last_batch_ns = end_ns
        self._counters.count_lone(end_ns - now_ns, infer_ns)

    def enqueue(self, session: Session) -> None:
        """The session has waiting rows: it shall have a part in one of the next batches."""
        if not session.queued:
            session.queued = True
            if not self._ready:
                self._lingering_since_ns = self._clock() if self._linger_ns else 0
            self._ready.append(session)
            self._wake()

    def forget(self, session: Session) -> None:
        """The session is closed. What it has in the batch being run is not answered."""
        if session.queued:
            session.queued = False
            self._ready.remove(session)
        if self._last_talker is session:
            self._last_talker = None

    # -- the loop's side ---------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """True where no row waits and no batch runs."""
        return not self._ready and not self._segments

    def poll(self) -> bool:
        """Finish the batch that runs, if it is done, and start the next. True where there is work left or was."""
        if self._segments:
            try:
                if not self._backend.ready():
                    return True
            except BackendFailed as error:
                segments, self._segments = self._segments, []
                self._fail(segments, error)
                return True
            self._complete(self._clock())
        if not self._ready:
            return False
        if self._linger_ns and self._lingers():
            return True
        self._start()
        return True

    def _lingers(self) -> bool:
        waiting = sum(session.waiting_rows for session in self._ready)
        return waiting < self.batch_rows_max and self._clock() - self._lingering_since_ns < self._linger_ns

    def _start(self) -> None:
        """Fill a batch in turn from the ready sessions and submit it."""
        now_ns = self._clock()
        inputs = self._backend.inputs
        segments: list[Segment] = []
        rows = 0
        ready = self._ready
        room = self.batch_rows_max
        share = max(room // len(ready), SEGMENT_ROWS_MIN)
        for _ in range(len(ready)):
            session = ready.popleft()
            session.queued = False
            take = min(session.waiting_rows, room, share if ready else room)
            segment = screen(session, take, inputs, rows, now_ns)
            segments.append(segment)
            session.in_batch_rows = take
            rows += segment.live
            room -= take
            if not room:
                break
        self._last_talker = segments[0].session if len(segments) == 1 else None
        self._segments = segments
        self._submitted_ns = self._clock()
        if rows:
            try:
                if not self._submit(rows):
                    return
            except BackendFailed as error:
                self._segments = []
                self._fail(segments, error)
                return
        self._complete(self._clock())

    def _complete(self, end_ns: int) -> None:
        """Answer the batch that has finished."""
        segments, self._segments = self._segments, []
        rows = sum(segment.live for segment in segments)
        infer_ns = 0
        if rows:
            infer_ns = end_ns - self._submitted_ns
            flat = self._backend.outputs[:rows].reshape(-1)
            if not flat.dot(flat) < inf:
                fail_rows_without_a_number(self._backend.outputs[:rows], segments)
            self._counters.batches_by_rows[rows] += 1
            self._counters.model.add(infer_ns)
        self.last_batch_ns = end_ns
        for segment in segments:
            self._answer(segment, infer_ns, rows)

    def _answer(self, segment: Segment, infer_ns: int, batch_rows: int) -> None:
        session = segment.session
        session.in_batch_rows = 0
        if session.closed:
            return
        words = session.inbox.row_words(0, segment.rows)
        outputs = self._backend.outputs[segment.first : segment.first + segment.live]
        if segment.kept is not None:
            outputs = outputs[segment.kept]
        send_ns = self._clock()
        outbox = session.outbox
        session.peer.send(
            outbox.encode(
                words,
                outputs,
                segment.statuses,
                send_time_ns=send_ns,
                infer_ns=infer_ns,
                batch_rows=batch_rows,
            )
        )
        if not session.closed:
            statuses = None if outbox.all_ok else outbox.statuses(segment.rows)
            self._counters.count_answers(words[:, 0], statuses, send_ns, infer_ns)
            session.answered(segment.rows, send_ns)

    def _fail(self, segments: list[Segment], error: BackendFailed) -> None:
        """Every row of the batch gets its answer, MODEL_ERROR; then, where the process cannot go on, it ends."""
        now_ns = self._clock()
        if error.fatal or now_ns - self._failure_logged_ns >= _FAILURE_LOG_INTERVAL_NS:
            self._failure_logged_ns = now_ns
            log.error("model %s failed on a batch: %s", self.spec.name, error)
        rows = sum(segment.live for segment in segments)
        fail_all(segments)
        for segment in segments:
            self._answer(segment, 0, rows)
        if error.fatal:
            self._on_fatal(error)
