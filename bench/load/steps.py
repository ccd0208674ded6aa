"""What is sent where the daemon keeps the history: one step in each request, in a cycle that repeats, so that
the window of every step is known before the run.

Step j of the cycle goes over connection j mod `connections`; the steps of one connection go round its
instruments. Each connection first stores whole cycles (STORE_ONLY), so that every window is full when the run
begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.bench.errors import BadRequest
from sigd.bench.load.requests import Float32Array, encode
from sigd.models.backend import Backend
from sigd.models.denormals import float_environment_kept
from sigd.models.errors import ModelError
from sigd.models.history import Window
from sigd.models.reading import HistoryOptions, ReadOptions
from sigd.models.registry import open_backend

_STEPS_OF_CYCLE: Final = 1024
"""The cycle has about so many steps; the model runs once for each of them before the run."""
_STEPS_OF_INSTRUMENT_MIN: Final = 4
_BATCH_ROWS: Final = 16


@dataclass(frozen=True, slots=True)
class Cycle:
    """The steps of all connections.

    Attributes:
        rows: float32, shape (steps, features).
        instruments: uint32, shape (steps,).
        stored: how many steps each connection stores before the run.
        connections: see the module.
        instruments_each: of one connection.
    """

    rows: Float32Array
    instruments: npt.NDArray[np.uint32]
    stored: int
    connections: int
    instruments_each: int

    def frames(self) -> npt.NDArray[np.uint8]:
        """Whole request frames, uint8, shape (steps, bytes)."""
        return encode(self.rows, self.instruments)

    def windows(self, window: Window) -> Float32Array:
        """What the model looks at for each step once all windows are full, float32, shape (steps,
        window.steps * window.features)."""
        # [step of the instrument, instrument of the connection, connection, feature]
        cycle = self.rows.reshape(-1, self.instruments_each, self.connections, window.features)
        length = len(cycle)
        seen = np.arange(1 - window.steps, 1)[None, :] + np.arange(length)[:, None]
        # [step, step of the window, instrument, connection, feature]
        found = np.moveaxis(cycle[seen % length], 1, 3)
        if window.time_axis != 1:
            found = np.swapaxes(found, 3, 4)
        return np.ascontiguousarray(found).reshape(len(self.rows), -1)


def make_cycle(features: int, history_steps: int, connections: int, instruments: int, seed: int) -> Cycle:
    """The steps of a run.

    Args:
        features: of one step.
        history_steps: that the model looks at.
        instruments: of each connection.
        seed: of the values, which are standard-normal.
    """
    each = connections * instruments
    length = max(_STEPS_OF_CYCLE // each, _STEPS_OF_INSTRUMENT_MIN)
    numbers = np.arange(length * each)
    return Cycle(
        rows=np.random.default_rng(seed).standard_normal((length * each, features), dtype=np.float32),
        instruments=(numbers // connections % instruments).astype(np.uint32),
        stored=-(-history_steps // length) * length * instruments,
        connections=connections,
        instruments_each=instruments,
    )


def expected_answers(cycle: Cycle, model: Path) -> Float32Array:
    """What the model answers to each step's whole window on ONNX Runtime, float32, shape (steps, outputs).

    Raises:
        BadRequest: the model cannot be opened.
    """
    with float_environment_kept():
        try:
            backend = open_backend(
                model, "onnxruntime", _BATCH_ROWS, reading=ReadOptions(history=HistoryOptions())
            )
        except ModelError as error:
            raise BadRequest(str(error)) from error
        try:
            return _answers(backend, cycle)
        finally:
            backend.close()


def _answers(backend: Backend, cycle: Cycle) -> Float32Array:
    window = backend.spec.window
    assert window is not None
    windows = cycle.windows(window)
    answers = np.empty((len(windows), backend.spec.outputs), np.float32)
    most = backend.batch_rows_max
    for first in range(0, len(windows), most):
        part = windows[first : first + most]
        backend.inputs[: len(part)] = part
        backend.submit(len(part))
        answers[first : first + most] = backend.outputs[: len(part)]
    return answers
