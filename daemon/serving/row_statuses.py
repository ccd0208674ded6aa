"""Statuses that requests were given when they came: the pending rows that will not run, and what they are
told."""

from __future__ import annotations

from collections import deque

import numpy as np

from sigd.wire.outbox import StatusArray
from sigd.wire.status import Status


class RowStatuses:
    """Runs of marked rows among the pending rows of one connection, oldest first. False where none is
    marked."""

    __slots__ = ("_answered_rows", "_runs")

    def __init__(self) -> None:
        self._answered_rows = 0
        # First row, end, status; rows counted from the connection's first.
        self._runs: deque[tuple[int, int, Status]] = deque()

    def __bool__(self) -> bool:
        return bool(self._runs)

    def set_newest(self, count: int, pending_rows: int, status: Status) -> None:
        """The newest `count` of `pending_rows` pending rows get this status."""
        end = self._answered_rows + pending_rows
        self._runs.append((end - count, end, status))

    def statuses(self, count: int) -> StatusArray:
        """Of the oldest `count` pending rows; OK where the model decides."""
        statuses = np.zeros(count, np.uint16)
        for first, end, status in self._runs:
            statuses[max(first - self._answered_rows, 0) : max(end - self._answered_rows, 0)] = status
        return statuses

    def answered(self, count: int) -> None:
        """The oldest `count` pending rows are answered."""
        self._answered_rows += count
        while self._runs and self._runs[0][1] <= self._answered_rows:
            self._runs.popleft()
