"""The windows that a daemon kept, made again from the recorded steps."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.models.backend import Float32Array
from sigd.models.history import NO_PLACE, StepWindows, Window
from sigd.wire.recording.reader import Exchanges, SessionFacts
from sigd.wire.status import STEP_STORED, RequestFlag

_STORED: Final = np.array(sorted(STEP_STORED), np.uint16)
_GIVE_UP: Final = RequestFlag.RESET | RequestFlag.STORE_ONLY


def recorded_window(facts: SessionFacts) -> Window | None:
    """What the model looked at for a client whose history was kept; None for one that sent whole rows."""
    if not facts.history_steps:
        return None
    return Window(facts.history_steps, facts.features, facts.time_axis)


class RecordedSteps:
    """The windows of all clients of a recording."""

    def __init__(self) -> None:
        self._windows: dict[int, StepWindows] = {}

    def forget(self) -> None:
        """Steps are missing: windows begin anew."""
        self._windows.clear()

    def rows_of(self, part: Exchanges) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        """What the model was given for each request, float32 (requests, features of the model), and which of
        these rows are known. Where history is kept only those that ran are, and of them those whose steps are
        all in the recording."""
        window = recorded_window(part.facts)
        if window is None:
            return part.requests["features"], np.ones(len(part.requests), np.bool_)
        windows = self._windows_of(part, window)
        rows = np.zeros((len(part.requests), window.steps * window.features), np.float32)
        known = np.zeros(len(part.requests), np.bool_)
        ran = part.responses["batch_rows"] > 0
        for row in np.flatnonzero(np.isin(part.responses["status"], _STORED)).tolist():
            request = part.requests[row]
            instrument, flags = int(request["instrument_id"]), int(request["flags"])
            if flags & _GIVE_UP == _GIVE_UP and np.isnan(request["features"]).all():
                windows.give_up(instrument)
                continue
            reset = bool(flags & RequestFlag.RESET)
            place = windows.store(instrument, request["features"], reset=reset)
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
