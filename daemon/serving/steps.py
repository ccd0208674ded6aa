"""From a connection's pending steps to windows of a batch, where the daemon keeps the history: each step is
stored in its order, and the model runs for those whose window is whole.

Told instead of an answer, in this order: what admission decided (BUSY, DRAINING) and features that the model
cannot run (BAD_INPUT), after which the step is not stored; no room for one more instrument (BUSY); then, of
steps that are stored, STORED, WARMING_UP, EXPIRED and CONFLATED.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sigd.daemon.serving.admission import Segment
from sigd.daemon.serving.row_check import RowCheck
from sigd.models.backend import AnswersSteps
from sigd.models.history import NO_PLACE, StepWindows
from sigd.models.onnx.columns import side_by_side
from sigd.wire.layout import REQUEST_DEADLINE_WORD, REQUEST_INSTRUMENT_WORD, WordArray
from sigd.wire.status import RequestFlag, Status

if TYPE_CHECKING:
    from sigd.daemon.serving.session import Session
    from sigd.models.backend import Backend
    from sigd.models.carried_state import CarriedStates
    from sigd.models.spec import ModelSpec

_INSTRUMENT_HALF: Final = 2 * REQUEST_INSTRUMENT_WORD
_FLAGS: Final = 0xFFFF
_GIVE_UP: Final = RequestFlag.RESET | RequestFlag.STORE_ONLY


def step_check(spec: ModelSpec) -> RowCheck:
    """What a model whose history is kept demands of each step."""
    if spec.state is not None:
        placed = side_by_side(spec.state.step)
        return RowCheck(replace(spec, features=spec.state.features, input_columns=placed))
    if spec.window is None:
        return RowCheck(spec)
    columns = tuple(replace(one, dims=(spec.window.features,)) for one in spec.input_columns)
    return RowCheck(replace(spec, features=spec.window.features, input_columns=columns))


def follow(windows: StepWindows, backend: Backend) -> None:
    """Have the backend keep what it needs to answer steps of these windows, where it can."""
    windows.follow_by(backend.follow(windows) if isinstance(backend, AnswersSteps) else None)


def later_work(backend: Backend) -> Callable[[], bool]:
    """Does a part of the work that answers of steps left for later; whether there was any."""
    return backend.advance if isinstance(backend, AnswersSteps) else _nothing_left


def _nothing_left() -> bool:
    return False


def admit_steps(
    session: Session, rows: int, inputs: npt.NDArray[np.float32], first: int, now_ns: int, check: RowCheck
) -> Segment:
    """Store the session's oldest `rows` waiting steps, and copy to `inputs[first:]` the windows that shall
    run.

    `inputs` is float32, C order, with at least `rows` rows from `first` on; `check` is `step_check()`'s.
    """
    windows = session.history
    assert isinstance(windows, StepWindows)
    pending = PendingSteps(session, rows, now_ns, check)
    statuses = pending.statuses
    overtaken = _overtaken(session, rows, now_ns, check) if session.conflate else ()
    row_of_batch = first
    for row in np.flatnonzero(statuses == Status.OK).tolist():
        if pending.is_settled(row, windows):
            continue
        flag = pending.flags[row]
        place = windows.store(
            pending.instruments[row], pending.features[row], reset=bool(flag & RequestFlag.RESET)
        )
        if place == NO_PLACE:
            statuses[row] = Status.BUSY
        elif flag & RequestFlag.STORE_ONLY:
            statuses[row] = Status.STORED
        elif not windows.is_warm(place):
            statuses[row] = Status.WARMING_UP
        elif pending.expired[row]:
            statuses[row] = Status.EXPIRED
        elif row in overtaken:
            statuses[row] = Status.CONFLATED
        else:
            windows.load(place, inputs[row_of_batch])
            row_of_batch += 1
    live = row_of_batch - first
    return Segment(session, rows, None if live == rows else statuses, first, live)


class PendingSteps:
    """A connection's oldest waiting steps, as a batch admits them.

    Attributes:
        features: float32, shape (rows, features).
        statuses: of each row, to be filled in.
        instruments, flags: of each row.
        expired: bool, shape (rows,): whether its deadline has passed.
    """

    __slots__ = ("_good", "_session", "expired", "features", "flags", "instruments", "statuses")

    def __init__(self, session: Session, rows: int, now_ns: int, check: RowCheck) -> None:
        words = session.inbox.row_words(0, rows)
        deadlines = words[:, REQUEST_DEADLINE_WORD]
        self._session = session
        self.features = session.inbox.row_features(0, rows)
        self._good = check.good_rows(self.features)
        self.statuses = session.row_statuses.statuses(rows)
        self.instruments, self.flags = _step_words(words)
        self.expired = (deadlines != 0) & (deadlines < now_ns)

    def is_settled(self, row: int, history: StepWindows | CarriedStates) -> bool:
        """Whether a step is told something at once and not stored: it gives its instrument up (STORED), or
        the model cannot run it (BAD_INPUT)."""
        step = self.features[row]
        if self.flags[row] & _GIVE_UP == _GIVE_UP and bool(np.isnan(step).all()):
            history.give_up(self.instruments[row])
            self.statuses[row] = Status.STORED
            return True
        if not self._good[row]:
            self._session.batcher.found_bad(self._session, step)
            self.statuses[row] = Status.BAD_INPUT
            return True
        return False


def _step_words(words: WordArray) -> tuple[list[int], list[int]]:
    """Instruments and flags of pending rows, see RequestInbox.row_words."""
    halves = words.view(np.uint32)
    return halves[:, _INSTRUMENT_HALF].tolist(), (halves[:, _INSTRUMENT_HALF + 1] & _FLAGS).tolist()


def _overtaken(session: Session, rows: int, now_ns: int, check: RowCheck) -> set[int]:
    """Which of the oldest `rows` waiting steps have a later one behind them that answers for the same
    instrument.

    A step that gets no answer of the model (busy, bad, draining, expired, stored only) overtakes none, and
    none overtakes what was before a reset: the answers after it begin with WARMING_UP.
    """
    inbox = session.inbox
    words = inbox.row_words(0, inbox.rows)
    instruments, flags = _step_words(words)
    deadlines = words[:, REQUEST_DEADLINE_WORD]
    in_time = (deadlines == 0) | (deadlines >= now_ns)
    counts = check.good_rows(inbox.row_features(0, inbox.rows))
    counts |= np.array(flags) & _GIVE_UP == _GIVE_UP
    counts &= session.row_statuses.statuses(inbox.rows) == Status.OK
    found: set[int] = set()
    answered: set[int] = set()
    for row in np.flatnonzero(counts)[::-1].tolist():
        instrument, flag = instruments[row], flags[row]
        if instrument in answered and row < rows:
            found.add(row)
        if flag & RequestFlag.RESET:
            answered.discard(instrument)
        elif in_time[row] and not flag & RequestFlag.STORE_ONLY:
            answered.add(instrument)
    return found
