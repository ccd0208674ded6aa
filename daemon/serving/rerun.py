"""A batch that failed, run again in halves: only the rows that fail by themselves are answered MODEL_ERROR,
not those of other clients in the same batch. No I/O, and no waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigd.wire.layout import REQUEST_INSTRUMENT_WORD

if TYPE_CHECKING:
    from sigd.daemon.serving.admission import Segment
    from sigd.models.backend import Backend


class Rerun:
    """One batch of two rows or more. A batch with one bad row among n takes about 2 log2(n) runs, twice its
    rows in all.

    Attributes:
        running: whether a part has been submitted and is not finished.
    """

    __slots__ = ("_backend", "_bad", "_error", "_inputs", "_outputs", "_part", "_parts", "running")

    def __init__(self, backend: Backend, rows: int, error: Exception) -> None:
        """The first `rows` rows of the backend's `inputs` are the batch."""
        self._error: Exception | None = error
        self.running = False
        self._backend = backend
        self._inputs = backend.inputs[:rows].copy()
        self._outputs = np.full_like(backend.outputs[:rows], np.nan)
        self._bad = np.zeros(rows, np.bool_)
        self._part = range(rows)
        self._parts: list[range] = []
        self._halve()

    @property
    def finished(self) -> bool:
        """True where every row has run, or has failed by itself."""
        return not self._parts and not self.running

    def load(self) -> int:
        """Copy the next part to the backend's `inputs`; how many rows it has."""
        self._part = self._parts.pop()
        rows = len(self._part)
        self._backend.inputs[:rows] = self._inputs[self._part.start : self._part.stop]
        self.running = True
        return rows

    def succeeded(self) -> None:
        """The part has run."""
        self.running = False
        part = self._part
        self._outputs[part.start : part.stop] = self._backend.outputs[: len(part)]

    def failed(self, error: Exception) -> None:
        """The part has failed."""
        self.running = False
        if len(self._part) == 1:
            self._bad[self._part.start] = True
            self._error = error
        else:
            self._halve()

    def take_error(self) -> Exception:
        """What a single row failed with last. Taken out: its traceback holds on to this object."""
        error, self._error = self._error, None
        assert error is not None
        return error

    def store(self) -> None:
        """Leave the backend as if the batch had run: the outputs of rows that failed are NaN."""
        rows = len(self._inputs)
        self._backend.inputs[:rows] = self._inputs
        self._backend.outputs[:rows] = self._outputs

    def culprits(self, segments: list[Segment]) -> list[tuple[str, int]]:
        """The client and the instrument of each row that failed, where the client is still connected."""
        return culprits(segments, self._bad)

    def _halve(self) -> None:
        part = self._part
        middle = (part.start + part.stop) // 2
        self._parts += [range(middle, part.stop), range(part.start, middle)]


def culprits(
    segments: list[Segment], bad: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> list[tuple[str, int]]:
    """The client and the instrument of each row of a batch that `bad` marks; one that has left is left
    out."""
    found: list[tuple[str, int]] = []
    for segment in segments:
        if segment.session.closed or not segment.live:
            continue
        words = segment.session.inbox.row_words(0, segment.rows)
        if segment.ran is not None:
            rows = segment.ran
        elif segment.statuses is None:
            rows = np.arange(segment.rows)
        else:
            rows = np.flatnonzero(segment.statuses == 0)
        for row in rows[bad[segment.first : segment.first + segment.live]].tolist():
            instrument = int(words[row, REQUEST_INSTRUMENT_WORD]) & 0xFFFF_FFFF
            found.append((segment.session.client_name, instrument))
    return found
