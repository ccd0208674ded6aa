"""From a connection's pending rows to rows of a batch: which rows run, and the status of the others.

In this order: what admission decided (BUSY, DRAINING), deadlines that have passed (EXPIRED), requests
overtaken by a newer one for their instrument (CONFLATED), features that the model cannot run
(BAD_INPUT). What is left is copied into the model's input array, without gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sigd.wire.layout import REQUEST_DEADLINE_WORD, REQUEST_INSTRUMENT_WORD
from sigd.wire.outbox import StatusArray
from sigd.wire.status import Status

if TYPE_CHECKING:
    from sigd.daemon.serving.row_check import RowCheck
    from sigd.daemon.serving.session import Session

_INSTRUMENT_HALF: Final = 2 * REQUEST_INSTRUMENT_WORD


@dataclass(slots=True)
class Segment:
    """The part of a batch that one connection contributed: its oldest `rows` pending rows.

    Attributes:
        statuses: one a row, or None where all are OK.
        first: row of the model's arrays where its live rows start.
        live: how many of its rows run.
        kept: which of its live rows' outputs may be sent, or None where all may.
        ran: where the model carries a state, which of its rows are live; None: those that are OK.
        places: where the model carries a state, whose state each live row has.
        send_ns: when its answers were sent; 0 where they were not.
    """

    session: Session
    rows: int
    statuses: StatusArray | None
    first: int
    live: int
    kept: npt.NDArray[np.bool_] | None = None
    ran: npt.NDArray[np.intp] | None = None
    places: Sequence[int] = ()
    send_ns: int = 0


def admit_to_batch(
    session: Session,
    rows: int,
    inputs: npt.NDArray[np.float32],
    first: int,
    now_ns: int,
    check: RowCheck,
) -> Segment:
    """Copy those of the session's oldest `rows` waiting rows that will run to `inputs[first:]`.

    `inputs` is float32, C order, with at least `rows` rows from `first` on; `check` is the model's.
    """
    inbox = session.inbox
    words = inbox.row_words(0, rows)
    statuses = session.row_statuses.statuses(rows) if session.row_statuses else None
    deadlines = words[:, REQUEST_DEADLINE_WORD]
    if np.count_nonzero(deadlines):
        passed = (deadlines != 0) & (deadlines < now_ns)
        if passed.any():
            statuses = _mark(statuses, passed, Status.EXPIRED)
    if session.conflate:
        overtaken = _overtaken(session, rows, now_ns)
        if overtaken.any():
            statuses = _mark(statuses, overtaken, Status.CONFLATED)
    features = inbox.row_features(0, rows)
    if statuses is None:
        live = rows
        target = inputs[first : first + rows]
        target[:] = features
    else:
        live = int(np.count_nonzero(statuses == Status.OK))
        target = inputs[first : first + live]
        target[:] = features[statuses == Status.OK]
    flat = target.reshape(-1)
    # One dot product says that all is finite; it may also overflow on large numbers, so a no is looked at
    # closely.
    if check.integers or not flat.dot(flat) < inf:
        good = check.good_rows(target)
        if not good.all():
            session.batcher.found_bad(session, target[good.argmin()])
            kept = target[good]
            live = len(kept)
            inputs[first : first + live] = kept
            statuses = np.zeros(rows, np.uint16) if statuses is None else statuses
            statuses[np.flatnonzero(statuses == Status.OK)[~good]] = Status.BAD_INPUT
    return Segment(session, rows, statuses, first, live)


def _mark(statuses: StatusArray | None, rows: npt.NDArray[np.bool_], status: Status) -> StatusArray:
    """Give `status` to those of `rows` that had none."""
    if statuses is None:
        statuses = np.zeros(len(rows), np.uint16)
    statuses[rows & (statuses == Status.OK)] = status
    return statuses


def _overtaken(session: Session, rows: int, now_ns: int) -> npt.NDArray[np.bool_]:
    """Which of the oldest `rows` waiting rows have a later one for the same instrument anywhere behind them.

    A row that will not run itself (busy, draining, expired) overtakes none: or an instrument would get no
    signal.
    """
    inbox = session.inbox
    waiting = inbox.row_words(0, inbox.rows)
    deadlines = waiting[:, REQUEST_DEADLINE_WORD]
    runs = (deadlines == 0) | (deadlines >= now_ns)
    if session.row_statuses:
        runs &= session.row_statuses.statuses(inbox.rows) == Status.OK
    instruments = waiting.view(np.uint32)[:, _INSTRUMENT_HALF].tolist()
    newest = {instruments[row]: row for row in np.flatnonzero(runs).tolist()}
    return np.fromiter((newest.get(instruments[row], -1) > row for row in range(rows)), np.bool_, rows)


def fail_rows_without_a_number(outputs: npt.NDArray[np.float32], segments: list[Segment]) -> None:
    """MODEL_ERROR for the live rows whose outputs, float32 (batch rows, m), are not all finite."""
    finite = np.asarray(np.isfinite(outputs).all(axis=1))
    if finite.all():
        return
    for segment in segments:
        own = finite[segment.first : segment.first + segment.live]
        if not own.all():
            _fail(segment, ~own)


def fail_all(segments: list[Segment]) -> None:
    """MODEL_ERROR for every live row."""
    for segment in segments:
        if segment.live:
            _fail(segment, np.ones(segment.live, np.bool_))


def _fail(segment: Segment, failed: npt.NDArray[np.bool_]) -> None:
    if segment.statuses is None:
        segment.statuses = np.zeros(segment.rows, np.uint16)
    if segment.ran is None:
        segment.statuses[np.flatnonzero(segment.statuses == Status.OK)[failed]] = Status.MODEL_ERROR
        segment.kept = ~failed
    else:
        segment.statuses[segment.ran[failed]] = Status.MODEL_ERROR
        segment.kept = segment.statuses[segment.ran] == Status.OK
