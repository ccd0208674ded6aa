"""Rows of features through the model, in the order of time, into a table of what was said and what the market
then did.

A row's outcome is known only when the horizon has passed, so rows wait for it; the table goes on in groups of
a fixed number of rows, which makes its bytes independent of how the events came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sigd.models.backend import Backend, Float32Array
from sigd.models.training.outcome import CLASSES, UNKNOWN, classes_of
from sigd.wire.status import Status

GROUP_ROWS: Final = 65_536

Int64Array = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[np.generic]]


class Rows(NamedTuple):
    """Rows that were taken together.

    Attributes:
        receive_ns: int64, shape (n,), ascending over all rows of a piece.
        mid: float64, shape (n,), in the quote currency; NaN where the source has no market.
        features: float32, shape (n, features).
    """

    receive_ns: Int64Array
    mid: npt.NDArray[np.float64]
    features: Float32Array


class Scored(NamedTuple):
    """Rows and what the model said; all of one length."""

    receive_ns: Int64Array
    mid: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint16]
    outputs: Float32Array

    def part(self, first: int, end: int | None = None) -> Scored:
        """Views of the rows from `first` up to `end`."""
        return Scored(
            self.receive_ns[first:end], self.mid[first:end], self.status[first:end], self.outputs[first:end]
        )


def score(backend: Backend, rows: Rows) -> Scored:
    """Run rows in batches, with the statuses that a daemon gives: BAD_INPUT for features that are no numbers,
    MODEL_ERROR for such outputs; outputs are NaN unless the status is OK.

    Raises:
        BackendFailed: the model failed on a batch.
    """
    count = len(rows.receive_ns)
    status = np.zeros(count, np.uint16)
    outputs = np.full((count, backend.spec.outputs), np.nan, np.float32)
    status[~np.isfinite(rows.features).all(axis=1)] = Status.BAD_INPUT
    live = np.flatnonzero(status == Status.OK)
    whole = len(live) == count
    for first in range(0, len(live), backend.batch_rows_max):
        chosen = live[first : first + backend.batch_rows_max]
        size = len(chosen)
        part = rows.features[first : first + size] if whole else rows.features[chosen]
        backend.inputs[:size] = part
        if not backend.submit(size):
            while not backend.ready():
                pass
        if whole:
            outputs[first : first + size] = backend.outputs[:size]
        else:
            outputs[chosen] = backend.outputs[:size]
    failed = (status == Status.OK) & ~np.isfinite(outputs).all(axis=1)
    status[failed] = Status.MODEL_ERROR
    outputs[failed] = np.nan
    return Scored(rows.receive_ns, rows.mid, status, outputs)


class Outcomes:
    """Keeps scored rows until their outcomes are known and gives them on as columns of a table.

    Attributes:
        rows: how many were given on.
        by_status: those, by status.
    """

    def __init__(self, horizon_ns: int, flat_bps: float) -> None:
        self._horizon_ns = horizon_ns
        self._flat_bps = flat_bps
        self._parts: list[Scored] = []
        self._waiting = 0
        self._latest_ns = -1
        self.rows = 0
        self.by_status = np.zeros(len(Status), np.int64)

    def add(self, scored: Scored) -> Iterator[Columns]:
        """Take rows in; give on every whole group whose outcomes are known."""
        if not len(scored.receive_ns):
            return
        self._parts.append(scored)
        self._waiting += len(scored.receive_ns)
        self._latest_ns = int(scored.receive_ns[-1])
        while self._waiting >= GROUP_ROWS:
            whole = self._joined()
            # Later rows may still have the latest time, so a mid is known only for times before it.
            if int(whole.receive_ns[GROUP_ROWS - 1]) + self._horizon_ns >= self._latest_ns:
                return
            yield self._take(whole, GROUP_ROWS)

    def end(self) -> Iterator[Columns]:
        """Give on the rest. Outcomes past the last row are unknown: NaN."""
        while self._waiting:
            yield self._take(self._joined(), min(GROUP_ROWS, self._waiting))

    def _joined(self) -> Scored:
        if len(self._parts) > 1:
            self._parts = [
                Scored(
                    np.concatenate([part.receive_ns for part in self._parts]),
                    np.concatenate([part.mid for part in self._parts]),
                    np.concatenate([part.status for part in self._parts]),
                    np.concatenate([part.outputs for part in self._parts]),
                )
            ]
        return self._parts[0]

    def _take(self, whole: Scored, count: int) -> Columns:
        taken = whole.part(0, count)
        self._parts = [whole.part(count)]
        self._waiting -= count
        self.rows += count
        self.by_status += np.bincount(taken.status, minlength=len(Status))
        return self._columns(whole, taken)

    def _columns(self, whole: Scored, taken: Scored) -> Columns:
        due_ns = taken.receive_ns + self._horizon_ns
        at = np.searchsorted(whole.receive_ns, due_ns, side="right") - 1
        moves = (whole.mid[at] / taken.mid - 1) * 1e4
        moves[due_ns > self._latest_ns] = np.nan
        columns: Columns = {
            "receive_ns": taken.receive_ns,
            "mid": taken.mid,
            "status": taken.status,
        }
        for number in range(taken.outputs.shape[1]):
            columns[f"output_{number}"] = taken.outputs[:, number]
        columns["move_bps"] = moves
        if taken.outputs.shape[1] == len(CLASSES):
            said = np.asarray(np.argmax(taken.outputs, axis=1), np.int8)
            said[taken.status != Status.OK] = UNKNOWN
            columns["signal"] = said
            columns["outcome"] = classes_of(moves, self._flat_bps).astype(np.int8)
        return columns
