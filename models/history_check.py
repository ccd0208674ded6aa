"""What `sigd serve --check` proves of a model with history: steps answer as whole windows do."""

from __future__ import annotations

from typing import Final

import numpy as np

from sigd.models.backend import AnswersSteps, Backend
from sigd.models.carried_state import CarriedState, CarriedStates
from sigd.models.errors import BackendFailed
from sigd.models.history import Float32Array, StepWindows

_CHECK_SEED: Final = 1
_CHECKED_MAX: Final = 50
"""So many windows are checked besides the first ones."""


def check_steps(backend: Backend) -> None:
    """Whether stepping through drawn rows answers what each whole window does, to the bit; of a model that
    carries a state, what its steps do without other instruments in between.

    Args:
        backend: open, of a model with a window or a state.

    Raises:
        BackendFailed: it does not.
    """
    if backend.spec.state is not None:
        _check_states(backend, backend.spec.state)
        return
    window = backend.spec.window
    assert window is not None
    draw = np.random.default_rng(_CHECK_SEED)
    shape = (window.steps + min(window.steps, _CHECKED_MAX) + 1, window.features)
    rows = draw.standard_normal(shape).astype(np.float32)
    windows = StepWindows(window, 1)
    if isinstance(backend, AnswersSteps):
        windows.stepped = backend.follow(windows)
    for newest, row in enumerate(rows, start=1):
        place = windows.store(0, row)
        if not windows.is_warm(place):
            continue
        stepped = _newest(backend, windows, place)
        whole = rows[newest - window.steps : newest]
        backend.inputs[0] = (whole if window.time_axis == 1 else whole.T).reshape(-1)
        if stepped.tobytes() != _answer(backend).tobytes():
            raise BackendFailed(
                f"{backend.spec.path}: step {newest} on {backend.name} answers other bits than its whole"
                " window, expected the same: serve it without the history table"
            )


def _newest(backend: Backend, windows: StepWindows, place: int) -> Float32Array:
    """The answer to the newest step, as the daemon gives it; then a part of what is left for later."""
    if windows.stepped is None:
        windows.load(place, backend.inputs[0])
        return _answer(backend)
    answer = np.empty(backend.spec.outputs, np.float32)
    windows.stepped.answer(place, answer)
    if isinstance(backend, AnswersSteps):
        backend.advance()
    return answer


def _check_states(backend: Backend, state: CarriedState) -> None:
    """An instrument must get the same answers whether it is alone, or steps in turns with another one, or
    begins anew behind other steps."""
    draw = np.random.default_rng(_CHECK_SEED)
    rows = draw.standard_normal((_CHECKED_MAX, state.features)).astype(np.float32)
    states = CarriedStates(state, 2)
    alone = [_step(backend, states, 0, row, reset=not number) for number, row in enumerate(rows)]
    for number, row in enumerate(rows):
        _step(backend, states, 1, rows[-1 - number])
        if _step(backend, states, 0, row, reset=not number) != alone[number]:
            raise BackendFailed(
                f"{backend.spec.path}: step {number + 1} on {backend.name} answers other bits where another"
                " instrument steps in between, expected the same: serve it without the history table"
            )


def _step(
    backend: Backend, states: CarriedStates, instrument: int, row: Float32Array, *, reset: bool = False
) -> bytes:
    place = states.begin(instrument, reset=reset)
    states.load(place, row, backend.inputs[0])
    answer = _answer(backend)
    states.keep(place, answer)
    return answer.tobytes()


def _answer(backend: Backend) -> Float32Array:
    if not backend.submit(1):
        while not backend.ready():
            pass
    answer: Float32Array = backend.outputs[0].copy()
    return answer
