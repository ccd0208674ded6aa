"""What a model was given where the daemon kept the history, made again from the recorded steps: the windows,
or the states that the model carried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.models.backend import Float32Array
from sigd.models.carried_state import CarriedState, CarriedStates
from sigd.models.history import NO_PLACE, InstrumentPlaces, StepWindows, Window
from sigd.models.spec import ModelSpec
from sigd.wire.recording.reader import Exchanges
from sigd.wire.status import STEP_STORED, RequestFlag, Status

_STORED: Final = np.array(sorted(STEP_STORED), np.uint16)
_GIVE_UP: Final = RequestFlag.RESET | RequestFlag.STORE_ONLY

Given = tuple[Float32Array, npt.NDArray[np.bool_]]


class RecordedSteps:
    """The windows and states of all clients of a recording."""

    def __init__(self) -> None:
        self._windows: dict[int, StepWindows] = {}
        self._states: dict[int, CarriedStates] = {}
        # The instruments of each client whose steps are all recorded, since the first or since a reset.
        self._known: dict[int, set[int]] = {}
        self._since_start = True
        # Where the states belong that come out of the batch: of each row that ran.
        self._under_way: list[tuple[CarriedStates, int, bool]] = []

    def forget(self) -> None:
        """Steps are missing: windows begin anew, and a state is not known before a reset."""
        self._windows.clear()
        self._states.clear()
        self._known.clear()
        self._since_start = False

    def rows_of(self, part: Exchanges, spec: ModelSpec | None) -> Given:
        """What the model was given for each request, float32 (requests, features of the model), and which of
        these rows are known. Where history is kept only those that ran are, and of them those whose steps are
        all in the recording.

        Args:
            spec: of the model that runs them, where `part.facts.states` says that it carries a state.
        """
        if spec is not None and spec.state is not None:
            return self._rows_with_states(part, spec, spec.state)
        facts = part.facts
        if not facts.history_steps:
            return part.requests["features"], np.ones(len(part.requests), np.bool_)
        return self._rows_with_windows(part, Window(facts.history_steps, facts.features, facts.time_axis))

    def keep(self, outputs: Float32Array) -> None:
        """What came out for each row that ran, in the order in which `rows_of` was asked for them."""
        under_way, self._under_way = self._under_way, []
        for row, (states, place, failed) in enumerate(under_way):
            if failed:
                states.lose(place)
            else:
                states.keep(place, outputs[row])

    def _rows_with_windows(self, part: Exchanges, window: Window) -> Given:
        windows = self._windows_of(part, window)
        rows = np.zeros((len(part.requests), window.steps * window.features), np.float32)
        known = np.zeros(len(part.requests), np.bool_)
        ran = part.responses["batch_rows"] > 0
        for row, instrument, reset in _stored(part, windows):
            place = windows.store(instrument, part.requests["features"][row], reset=reset)
            if ran[row] and place != NO_PLACE and windows.is_warm(place):
                windows.load(place, rows[row])
                known[row] = True
        return rows, known

    def _windows_of(self, part: Exchanges, window: Window) -> StepWindows:
        """A client's, which it keeps when the model is replaced by one of the same shape."""
        found = self._windows.get(part.session)
        if found is None:
            found = self._windows.pop(part.facts.follows, None)
            if found is None:
                found = StepWindows(window, part.facts.history_instruments_max)
            self._windows[part.session] = found
        return found

    def _rows_with_states(self, part: Exchanges, spec: ModelSpec, state: CarriedState) -> Given:
        """States of two models do not mix: a client has a new number with each."""
        states = self._states.get(part.session)
        if states is None:
            states = self._states[part.session] = CarriedStates(state, part.facts.history_instruments_max)
        complete = self._known.setdefault(part.session, set())
        rows = np.zeros((len(part.requests), spec.features), np.float32)
        known = np.zeros(len(part.requests), np.bool_)
        for row, instrument, reset in _stored(part, states):
            if reset or (self._since_start and not states.has(instrument)):
                complete.add(instrument)
            place = states.begin(instrument, reset=reset)
            states.load(place, part.requests["features"][row], rows[row])
            known[row] = instrument in complete
            failed = part.responses["status"][row] == Status.MODEL_ERROR
            self._under_way.append((states, place, bool(failed)))
        return rows, known


def _stored(part: Exchanges, places: InstrumentPlaces) -> Iterator[tuple[int, int, bool]]:
    """Row, instrument and reset of each step that was stored; an instrument that was given up loses its place
    when it is its turn."""
    for row in np.flatnonzero(np.isin(part.responses["status"], _STORED)).tolist():
        request = part.requests[row]
        instrument, flags = int(request["instrument_id"]), int(request["flags"])
        if flags & _GIVE_UP == _GIVE_UP and np.isnan(request["features"]).all():
            places.give_up(instrument)
        else:
            yield row, instrument, bool(flags & RequestFlag.RESET)
