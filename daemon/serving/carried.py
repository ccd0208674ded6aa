"""From a connection's pending steps to rows of a batch, where the model carries a state from step to step:
each step that is stored runs, in its order, with the state that the step before it left.

A batch has one step of an instrument at most, for the next one needs the state that comes out; what is behind
it waits for the next batch. Told instead of an answer: what admission decided (BUSY, DRAINING) and features
that the model cannot run (BAD_INPUT), after which the step is not stored; no room for one more instrument
(BUSY); then, of steps that run all the same, STORED, WARMING_UP and EXPIRED.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sigd.daemon.serving.admission import Segment
from sigd.daemon.serving.steps import PendingSteps
from sigd.models.carried_state import CarriedStates
from sigd.models.history import NO_PLACE
from sigd.wire.status import RequestFlag, Status

if TYPE_CHECKING:
    from sigd.daemon.serving.row_check import RowCheck
    from sigd.daemon.serving.session import Session


def admit_carried(
    session: Session, rows: int, inputs: npt.NDArray[np.float32], first: int, now_ns: int, check: RowCheck
) -> Segment:
    """Copy those of the session's oldest `rows` waiting steps that will run to `inputs[first:]`, each with
    its instrument's state. The segment ends before the second step of an instrument.

    `inputs` is float32, C order, with at least `rows` rows from `first` on; `check` is `step_check()`'s.
    """
    states = session.history
    assert isinstance(states, CarriedStates)
    pending = PendingSteps(session, rows, now_ns, check)
    statuses = pending.statuses
    ran: list[int] = []
    places: list[int] = []
    running: set[int] = set()
    for row in np.flatnonzero(statuses == Status.OK).tolist():
        instrument, flag = pending.instruments[row], pending.flags[row]
        if instrument in running:
            rows = row
            break
        if pending.is_settled(row, states):
            continue
        place = states.begin(instrument, reset=bool(flag & RequestFlag.RESET))
        if place == NO_PLACE:
            statuses[row] = Status.BUSY
            continue
        states.load(place, pending.features[row], inputs[first + len(ran)])
        running.add(instrument)
        ran.append(row)
        places.append(place)
        if flag & RequestFlag.STORE_ONLY:
            statuses[row] = Status.STORED
        elif not states.is_warm(place):
            statuses[row] = Status.WARMING_UP
        elif pending.expired[row]:
            statuses[row] = Status.EXPIRED
    statuses = statuses[:rows]
    segment = Segment(session, rows, statuses, first, len(ran), places=places)
    segment.ran = np.array(ran, np.intp)
    kept = statuses[segment.ran] == Status.OK
    if not kept.all():
        segment.kept = kept
    return segment


def keep_states(segment: Segment, outputs: npt.NDArray[np.float32]) -> None:
    """Keep the states that the segment's rows left in `outputs`, those of the whole batch, for the next steps
    of their instruments. An instrument whose step failed begins anew."""
    states = segment.session.history
    assert isinstance(states, CarriedStates)
    assert segment.statuses is not None
    assert segment.ran is not None
    failed = segment.statuses[segment.ran] == Status.MODEL_ERROR
    for number, place in enumerate(segment.places):
        if failed[number]:
            states.lose(place)
        else:
            states.keep(place, outputs[segment.first + number])
