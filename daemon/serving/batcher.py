"""Policy of batching: which rows are in the next batch, what runs, and which answer a row gets. No I/O, and
no waiting.

Batching is opportunistic: what has arrived while the last batch ran is the next one, at most `batch_rows_max`
rows, filled in turn from the sessions that have waiting rows. A single request never waits for company; where
no other client talks, or the model is so quick that a batch would cost more than it saves, it does not even
wait for the loop's next round (`daemon.serving.fast_path`). Every row of a session is answered in its order,
the rows that do not run (expired, busy, bad input, conflated, draining) among them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Final

import numpy as np

from sigd.daemon.config.limits import DEFAULTS, FEW_ROWS, Limits
from sigd.daemon.serving import native_fast_path
from sigd.daemon.serving.admission import Segment, admit_to_batch, fail_all, fail_rows_without_a_number
from sigd.daemon.serving.carried import admit_carried, keep_states
from sigd.daemon.serving.fast_path import (
    NATIVE_ROWS_MAX,
    ONE_BY_ONE_ROWS_MAX,
    QUICK_RUN_NS_MAX,
    STEP_ROWS_MAX,
    WAIT_NS_MAX,
)
from sigd.daemon.serving.rerun import Rerun, culprits
from sigd.daemon.serving.row_check import RowCheck
from sigd.daemon.serving.steps import admit_steps, later_work, step_check
from sigd.models.carried_state import answer_columns
from sigd.models.errors import BackendFailed
from sigd.wire.messages import ModelInfo

if TYPE_CHECKING:
    import numpy.typing as npt

    from sigd.daemon.serving.counters import ModelCounters
    from sigd.daemon.serving.ports import SessionTap, SessionTaps
    from sigd.daemon.serving.session import Session
    from sigd.models.backend import Backend
    from sigd.models.spec import ModelSpec

log = logging.getLogger(__name__)

_FAILURE_LOG_INTERVAL_NS: Final = 1_000_000_000
GENERATIONS_KEPT: Final = 1024
"""Digests of models that were served are kept for so many generations, for clients that ask."""


class Batcher:
    """One model, its backend, and the sessions that it serves.

    Attributes:
        name: what clients call the model; it stays, whatever file is served under it.
        spec: the model that is served.
        limits: the bounds of admission to this model.
        generation: rises by one with each swap of the model.
        batch_rows_max: the backend's.
        pending_rows: requests admitted and not answered, over all sessions.
        last_batch_ns: when the last batch ended, on `clock`.
        wake: called when there is work for `poll()`.
        fast_path_owner: the session that may use the fast path: it had the last batch to itself, and no row
            waits.
        fast_path_open: any session may use the fast path, for runs are so short that none is kept waiting for
            long.
        one_by_one_rows_max: how many requests of one session that arrive together run one after the other.
    """

    backend: Backend
    spec: ModelSpec
    batch_rows_max: int

    def __init__(
        self,
        backend: Backend,
        counters: ModelCounters,
        clock: Callable[[], int],
        *,
        wake: Callable[[], None],
        on_fatal: Callable[[BackendFailed], None],
        limits: Limits = DEFAULTS,
        linger_ns: int = 0,
        generation: int = 1,
        taps: SessionTaps | None = None,
        digests: dict[int, bytes] | None = None,
        on_swap: Callable[[Batcher], None] | None = None,
    ) -> None:
        """
        Args:
            backend: open.
            clock: CLOCK_MONOTONIC in ns.
            wake: called when there is work for `poll()`.
            on_fatal: called once the requests in flight are answered after a failure that the process cannot
                survive.
            linger_ns: how long a batch that is not full waits for more rows.
            taps: make what records a session; None where nothing is recorded.
            digests: SHA-256 of the model by generation, of the batcher that this one follows.
            on_swap: called with this batcher once it serves another model, while the old one is open.
        """
        self.name = backend.spec.name
        self.limits = limits
        self.generation = generation
        self.pending_rows = 0
        self.last_batch_ns = clock()
        self.counters = counters
        self.clock = clock
        self._taps = taps
        self.digests: dict[int, bytes] = {} if digests is None else digests
        self._on_swap = on_swap
        self.wake = wake
        self._on_fatal = on_fatal
        self._linger_ns = linger_ns
        self._lingering_since_ns = 0
        self._sessions: set[Session] = set()
        self._ready: deque[Session] = deque()
        self._segments: list[Segment] = []
        self._submitted_ns = 0
        self._left_running = False
        self.fast_path_owner: Session | None = None
        self.one_by_one_rows_max = 1
        self.fast_path_open = False
        self._rerun: Rerun | None = None
        self._failed_rows = 0
        self._failure_logged_ns = self._bad_input_logged_ns = -_FAILURE_LOG_INTERVAL_NS
        self._successor: tuple[Backend, Callable[[Backend], None]] | None = None
        self._take(backend)
        self._remember()

    # -- the sessions' side

    def may_run_at_once(self, session: Session) -> bool:
        """Whether the session may use the fast path now."""
        return self.fast_path_owner is session or (self.fast_path_open and session.serving)

    def fast_path_failed(self, error: Exception) -> None:
        """A request failed on the fast path. It runs again on the batch path, which says what failed; not
        where the device cannot be used any more, for which the batch path then fails without it."""
        self.close_fast_path()
        if isinstance(error, BackendFailed) and error.fatal:
            failure = error

            def fail(rows: int) -> bool:
                raise failure

            self._submit = fail

    def adopt(self, session: Session, submitted_ns: int) -> None:
        """A request takes longer than the fast path waits: it has become a pending row, and is the batch that
        runs.

        Where it became something else there (one of many, or broken by a client that writes to its ring
        meanwhile), the batch runs to its end, and its answer is thrown away.
        """
        self.close_fast_path()
        self.wake()
        if session.closed or session.waiting_rows != 1 or session.row_statuses:
            self._left_running = True
            if not session.closed and session.waiting_rows:
                self.enqueue(session)
            return
        if session.queued:
            session.queued = False
            self._ready.remove(session)
        session.in_batch_rows = 1
        self._segments = [Segment(session, 1, None, 0, 1)]
        self._submitted_ns = submitted_ns

    def found_bad(self, session: Session, row: npt.NDArray[np.float32]) -> None:
        """Log a row, float32 (features,), that the model cannot run: at most one a second, for a feed may be
        full of them."""
        now_ns = self.clock()
        if now_ns - self._bad_input_logged_ns < _FAILURE_LOG_INTERVAL_NS:
            return
        self._bad_input_logged_ns = now_ns
        check = self.row_check if session.history is None else self.step_check
        column = check.first_bad_column(row)
        log.warning(
            "model %s: client %r sent %g as feature %d (%s), expected %s: answered BAD_INPUT",
            self.spec.name,
            session.client_name,
            row[column],
            column,
            self.spec.feature_name(column) if session.history is None else "of a step",
            check.wanted(column),
        )

    def enqueue(self, session: Session) -> None:
        """Queue a session that has waiting rows for batching."""
        self.close_fast_path()
        if not session.queued:
            session.queued = True
            if not self._ready:
                self._lingering_since_ns = self.clock() if self._linger_ns else 0
            self._ready.append(session)
            self.wake()

    def join(self, session: Session) -> None:
        """The session is served from now on, until `forget()`."""
        self._sessions.add(session)

    def open_tap(self, session: Session, *, in_rings: bool) -> SessionTap | None:
        """What records the session's answers by this model; None where nothing is recorded."""
        return None if self._taps is None else self._taps.open(session, in_rings=in_rings)

    def forget(self, session: Session) -> None:
        """The session is closed. What it has in the batch being run is not answered."""
        self._sessions.discard(session)
        if session.queued:
            session.queued = False
            self._ready.remove(session)
        self.disown_fast_path(session)

    def disown_fast_path(self, session: Session) -> None:
        """The session's requests go the batch path from now on."""
        if self.fast_path_owner is session:
            self.fast_path_owner = None

    # -- the way to another model

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those that are served."""
        return tuple(self._sessions)

    def swap(self, backend: Backend, done: Callable[[Backend], None]) -> None:
        """Serve with another model, of the same shape, from the next batch on.

        Costs the same however many sessions there are, but for letting go of the old model: a session gets a
        fast path to the new one when it first has a part in a batch.

        Args:
            backend: open.
            done: called with the old one once nothing of it is needed any more.
        """
        self._successor = (backend, done)
        if not self._runs:
            self._succeed()

    def _succeed(self) -> None:
        """Between two batches: the successor takes over."""
        assert self._successor is not None
        (backend, done), self._successor = self._successor, None
        old = self.backend
        self.close_fast_path()
        for session in self._sessions:
            session.detach()
        self._take(backend)
        self.generation += 1
        self._remember()
        self.counters.allow_batches(backend.batch_rows_max)
        if self._on_swap is not None:
            self._on_swap(self)
        done(old)

    def _remember(self) -> None:
        self.digests[self.generation] = self.spec.sha256
        if len(self.digests) > GENERATIONS_KEPT:
            del self.digests[min(self.digests)]

    def describe(self, generation: int) -> ModelInfo:
        """Digest and name of a generation, 0 being the one that serves now; zeros where it is not known."""
        generation = generation or self.generation
        digest = self.digests.get(generation)
        return ModelInfo(generation) if digest is None else ModelInfo(generation, digest, self.name)

    def _succeed_if_due(self) -> None:
        if self._successor is not None and not self._runs:
            self._succeed()

    def _take(self, backend: Backend) -> None:
        self.backend = backend
        self.spec = backend.spec
        self.row_check = RowCheck(backend.spec)
        self.step_check = step_check(backend.spec)
        state = backend.spec.state
        self._answer_columns = None if state is None else answer_columns(state)
        self.batch_rows_max = backend.batch_rows_max
        self._fast_path_allowed = not self._linger_ns
        self._submit = backend.submit
        self._advance = later_work(backend)
        self._rows_cost_alike = native_fast_path.runs_engine(backend)
        self._quick_rows_max = NATIVE_ROWS_MAX if self._rows_cost_alike else ONE_BY_ONE_ROWS_MAX

    # -- the loop's side

    def close_fast_path(self) -> None:
        """The next request goes the batch path: a run takes too long, or rows wait, or another model takes
        over, or the loop sleeps and has to be woken."""
        self.fast_path_owner = None
        self.fast_path_open = False

    @property
    def is_tapped(self) -> bool:
        """Whether its answers are recorded."""
        return self._taps is not None

    @property
    def lingers(self) -> bool:
        """Whether batches that are not full wait for more rows."""
        return self._linger_ns > 0

    @property
    def idle(self) -> bool:
        """True where no row waits and no batch runs."""
        return not self._ready and not self._runs

    @property
    def _runs(self) -> bool:
        return bool(self._segments) or self._left_running

    @property
    def waiting_rows(self) -> int:
        """Requests admitted and not in a batch yet, over all sessions."""
        return sum(session.waiting_rows for session in self._ready)

    def poll(self) -> bool:
        """Finish the batch that runs, if it is done, and start the next. True where there is work left or
        was."""
        if self._rerun is not None:
            self._run_again()
            return True
        if self._segments or self._left_running:
            try:
                if not self.backend.ready():
                    return True
            except Exception as error:  # noqa: BLE001  whatever it was, the rows must be answered
                segments, self._segments, self._left_running = self._segments, [], False
                self._failed(segments, error)
                self._succeed_if_due()
                return True
            if self._left_running:
                self._left_running = False
            else:
                self._complete(self.clock())
            self._succeed_if_due()
        if not self._ready:
            return self._advance()
        if self._linger_ns and self._lingers():
            return True
        self._start()
        return True

    def _lingers(self) -> bool:
        return (
            self.waiting_rows < self.batch_rows_max
            and self.clock() - self._lingering_since_ns < self._linger_ns
        )

    def _start(self) -> None:
        """Fill a batch in turn from the ready sessions and submit it."""
        now_ns = self.clock()
        inputs = self.backend.inputs
        segments: list[Segment] = []
        rows = 0
        generation, check = self.generation, self.row_check
        for session, take in self._pick():
            try:
                if session.generation != generation:
                    session.attach()
                if session.history is None:
                    segment = admit_to_batch(session, take, inputs, rows, now_ns, check)
                elif self.spec.state is None:
                    segment = admit_steps(session, take, inputs, rows, now_ns, self.step_check)
                else:
                    segment = admit_carried(session, take, inputs, rows, now_ns, self.step_check)
            except Exception:  # noqa: BLE001  _give_up() logs it
                _give_up(session)
                continue
            segments.append(segment)
            session.in_batch_rows = segment.rows
            rows += segment.live
        self._segments = segments
        self._submitted_ns = self.clock()
        if rows:
            try:
                if not self._submit(rows):
                    return
            except Exception as error:  # noqa: BLE001  whatever it was, the rows must be answered
                self._segments = []
                self._failed(segments, error)
                return
        self._complete(self.clock())

    def _pick(self) -> list[tuple[Session, int]]:
        """Which sessions have a part in the next batch, and how many rows each.

        In turn, as they became ready. A session with few rows gets all of them in; the room that is left goes
        to the first sessions with many, as much as fits, for a part costs about 10 us of NumPy calls,
        whatever its rows: small parts of every session's in each batch would halve the throughput. Those for
        which no room is left come first next time.
        """
        ready = self._ready
        room = spare = self.batch_rows_max
        if len(ready) == 1:
            session = ready.popleft()
            session.queued = False
            return [(session, min(session.waiting_rows, room))]
        few = min(FEW_ROWS, room)
        asking: list[tuple[Session, int]] = []
        while ready and room:
            waiting = ready[0].waiting_rows
            reserved = min(waiting, few)
            if reserved > room:
                break
            room -= reserved
            if waiting <= few:
                spare -= waiting
            asking.append((ready.popleft(), waiting))
        picked: list[tuple[Session, int]] = []
        passed: list[Session] = []
        for session, waiting in asking:
            take = waiting
            if waiting > few:
                take = min(waiting, spare)
                spare -= take
            if take:
                session.queued = False
                picked.append((session, take))
            else:
                passed.append(session)
        ready.extendleft(reversed(passed))
        return picked

    def _complete(self, end_ns: int) -> None:
        """Answer the batch that has finished."""
        segments, self._segments = self._segments, []
        rows = sum(segment.live for segment in segments)
        infer_ns = 0
        if rows:
            infer_ns = end_ns - self._submitted_ns
            flat = self.backend.outputs[:rows].reshape(-1)
            if not flat.dot(flat) < inf:
                fail_rows_without_a_number(self.backend.outputs[:rows], segments)
        if self._fast_path_allowed and not self._ready:
            # A device runs what comes together in one batch at the price of one row.
            run_ns = infer_ns // max(rows, 1) if self._rows_cost_alike else infer_ns
            # A step on the fast path costs a fraction of the whole windows that run here.
            steps = bool(self._sessions) and all(one.answers_steps for one in self._sessions)
            quick = (steps or run_ns <= QUICK_RUN_NS_MAX) and self.backend.synchronous
            self.fast_path_open = quick
            several = STEP_ROWS_MAX if steps else self._quick_rows_max
            self.one_by_one_rows_max = several if quick else 1
            if (
                len(segments) == 1
                and (infer_ns <= WAIT_NS_MAX or self.backend.synchronous)
                and segments[0].session.serving
            ):
                self.fast_path_owner = segments[0].session
        self.last_batch_ns = end_ns
        self._answer_all(segments, infer_ns, rows)
        if rows:
            self.counters.count_batch(rows, infer_ns)

    def _answer_all(self, segments: list[Segment], infer_ns: int, batch_rows: int) -> None:
        for segment in segments:
            try:
                self._answer(segment, infer_ns, batch_rows)
            except Exception:  # noqa: BLE001  _give_up() logs it
                _give_up(segment.session)
        # All answers are under way: what follows costs no client of this batch anything.
        for segment in segments:
            if segment.places:
                keep_states(segment, self.backend.outputs)
        for segment in segments:
            if segment.send_ns and not segment.session.closed:
                try:
                    self._settle(segment, infer_ns)
                except Exception:  # noqa: BLE001  _give_up() logs it
                    _give_up(segment.session)

    def _answer(self, segment: Segment, infer_ns: int, batch_rows: int) -> None:
        session = segment.session
        session.in_batch_rows = 0
        if session.closed:
            return
        outputs = self.backend.outputs[segment.first : segment.first + segment.live]
        if self._answer_columns is not None:
            outputs = outputs[:, self._answer_columns]
        if segment.kept is not None:
            outputs = outputs[segment.kept]
        send_ns = self.clock()
        session.send_answers(
            session.outbox.encode(
                session.inbox.row_words(0, segment.rows),
                outputs,
                segment.statuses,
                send_time_ns=send_ns,
                infer_ns=infer_ns,
                batch_rows=batch_rows,
                ran=segment.ran,
            )
        )
        segment.send_ns = send_ns

    def _settle(self, segment: Segment, infer_ns: int) -> None:
        """Count and record what has been answered, and make room for more."""
        session, outbox = segment.session, segment.session.outbox
        words = session.inbox.row_words(0, segment.rows)
        if segment.rows == 1 and outbox.all_ok:
            self.counters.count_one(segment.send_ns - words.item(0), infer_ns)
        else:
            statuses = None if outbox.all_ok else outbox.statuses(segment.rows)
            self.counters.count_answers(words[:, 0], statuses, segment.send_ns, infer_ns)
        if session.tap is not None:
            session.tap.record(segment.rows, self.last_batch_ns)
        session.answered(segment.rows, segment.send_ns)

    def _failed(self, segments: list[Segment], error: Exception) -> None:
        """A batch has failed. One of several rows is run again in halves, so that no row fails for another's
        sake."""
        rows = sum(segment.live for segment in segments)
        if rows > 1 and not _is_fatal(error):
            self._rerun = Rerun(self.backend, rows, error)
            self._segments = segments
            self.wake()
            return
        self._log_failure(error, culprits(segments, np.ones(rows, np.bool_)))
        self._answer_failed(segments, error)

    def _run_again(self) -> None:
        """One step of a failed batch: submit its next part, or finish the part that runs."""
        rerun = self._rerun
        assert rerun is not None
        try:
            done = self.backend.ready() if rerun.running else self._submit(rerun.load())
        except Exception as error:  # noqa: BLE001  whatever it was, the rows must be answered
            if _is_fatal(error):
                segments, self._segments, self._rerun = self._segments, [], None
                self._log_failure(error, [])
                self._answer_failed(segments, error)
                return
            rerun.failed(error)
        else:
            if not done:
                return
            rerun.succeeded()
        if rerun.finished:
            self._rerun = None
            rerun.store()
            if bad := rerun.culprits(self._segments):
                self._log_failure(rerun.take_error(), bad)
            self._complete(self.clock())
            self._succeed_if_due()

    def _answer_failed(self, segments: list[Segment], error: Exception) -> None:
        """Every row that ran gets its answer, MODEL_ERROR; then, where the process cannot go on, it ends."""
        self.last_batch_ns = self.clock()
        fail_all(segments)
        self._answer_all(segments, 0, sum(segment.live for segment in segments))
        if isinstance(error, BackendFailed) and error.fatal:
            self._submit = self._refuse
            self._fast_path_allowed = False
            self.close_fast_path()
            self._on_fatal(error)

    def _log_failure(self, error: Exception, bad: list[tuple[str, int]]) -> None:
        """Say what failed and whose it was, once a second.

        Args:
            bad: client and instrument of each row.
        """
        now_ns = self.clock()
        self._failed_rows += len(bad)
        if now_ns - self._failure_logged_ns < _FAILURE_LOG_INTERVAL_NS:
            return
        self._failure_logged_ns = now_ns
        rows, self._failed_rows = self._failed_rows, 0
        whose = ""
        if bad:
            client, instrument = bad[-1]
            whose = f" of client {client!r}, instrument {instrument}" + (
                f" (and {rows - 1} more)" if rows > 1 else ""
            )
        log.error(
            "model %s failed on a row%s: %s",
            self.spec.name,
            whose,
            error,
            exc_info=None if isinstance(error, BackendFailed) else error,
        )

    def _refuse(self, rows: int) -> bool:
        """Replaces `Backend.submit` once the device cannot be used any more."""
        raise BackendFailed("its device has failed before and is not used any more")


def _is_fatal(error: Exception) -> bool:
    return isinstance(error, BackendFailed) and error.fatal


def _give_up(session: Session) -> None:
    """An error of this daemon's own, caught: it ends one connection, not its neighbours' and not the
    batching."""
    log.exception("client %r: an error of the daemon itself ends its connection", session.client_name)
    session.close()
