"""What `sigd serve --check` proves of a model with history: steps answer as whole windows do."""

from __future__ import annotations

from typing import Final

import numpy as np

from sigd.models.backend import Backend
from sigd.models.errors import BackendFailed
from sigd.models.history import Float32Array, StepWindows

_CHECK_SEED: Final = 1
_CHECKED_MAX: Final = 50
"""So many windows are checked besides the first ones."""


def check_steps(backend: Backend) -> None:
    """Whether stepping through drawn rows answers what each whole window does, to the bit.

    Args:
        backend: open, of a model with a window.

    Raises:
        BackendFailed: it does not.
    """
    window = backend.spec.window
    assert window is not None
    draw = np.random.default_rng(_CHECK_SEED)
    shape = (window.steps + min(window.steps, _CHECKED_MAX) + 1, window.features)
    rows = draw.standard_normal(shape).astype(np.float32)
    windows = StepWindows(window, 1)
    for newest, row in enumerate(rows, start=1):
        place = windows.store(0, row)
        if not windows.is_warm(place):
            continue
        windows.load(place, backend.inputs[0])
        stepped = _answer(backend)
        whole = rows[newest - window.steps : newest]
        backend.inputs[0] = (whole if window.time_axis == 1 else whole.T).reshape(-1)
        if stepped.tobytes() != _answer(backend).tobytes():
            raise BackendFailed(
                f"{backend.spec.path}: step {newest} on {backend.name} answers other bits than its whole"
                " window, expected the same: serve it without the history table"
            )


def _answer(backend: Backend) -> Float32Array:
    if not backend.submit(1):
        while not backend.ready():
            pass
    answer: Float32Array = backend.outputs[0].copy()
    return answer
