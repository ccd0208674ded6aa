"""Does a row's answer depend on the rows that happen to share its batch?

A daemon batches whatever has arrived, so a model that mixes rows (a mean over axis 0, a normalisation still
in training mode, a quantisation scale taken over the whole batch) would answer the same features differently
from one moment to the next. Such a model is found when it is opened, before it answers anybody.
"""

from __future__ import annotations

import numpy as np

from sigd.models.backend import Backend, Float32Array
from sigd.models.errors import ModelRefused


def check_rows_independent(backend: Backend) -> None:
    """Run the largest batch while one row stays as it is and all others change: that row's answer must not
    change.

    The first row is kept, then the last. Within one bucket and one position the arithmetic for a row is the
    same to the bit, so no tolerance is needed. The arrays are zeros afterwards.

    Args:
        backend: open, with no batch under way.

    Raises:
        ModelRefused: an answer changed.
        BackendFailed: the batch could not be run.
    """
    rows = backend.batch_rows_max
    for kept in {0, rows - 1} if rows > 1 else ():
        # Within [0, 1), which suits a model that takes a feature for an index; the neighbours' range moves by
        # half.
        kept_row = np.linspace(0.0, 0.5, backend.spec.features, dtype=np.float32)
        before = _answer(backend, kept, kept_row, neighbours=0.25)
        after = _answer(backend, kept, kept_row, neighbours=0.9375)
        if before != after:
            raise ModelRefused(
                f"{backend.spec.path}: the answer for a row changes with the other rows of its batch (or by"
                " chance),"
                " expected rows to be independent: look for an operator that works across axis 0, for"
                " training mode left"
                " on, or for dynamic quantisation; a model that must be so can be served with batch_rows_max"
                " 1"
            )
    backend.inputs[:] = 0.0
    backend.outputs[:] = 0.0


def _answer(backend: Backend, kept: int, kept_row: Float32Array, neighbours: float) -> bytes:
    """The bits of the answer for `kept_row` in a batch of rows filled with `neighbours`."""
    backend.inputs[:] = neighbours
    backend.inputs[kept] = kept_row
    if not backend.submit(backend.batch_rows_max):
        while not backend.ready():
            pass
    return bytes(backend.outputs[kept].data)
