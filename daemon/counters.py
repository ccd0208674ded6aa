"""What the daemon counts: of each model outcomes, batches and how long things took; of its clients who came and went.
Written by the hot path only.

Latencies are counted in two flat tables, 128 ns wide up to 1.05 ms and 131 us wide up to 1.07 s; anything longer
counts in the last bin. Counting is one shift and one increment; percentiles are worked out by whoever asks.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.wire.status import RejectCode, Status

FINE_SHIFT: Final = 7
COARSE_SHIFT: Final = 17
BINS: Final = 1 << 13


class LatencyCounts:
    """Counts of durations in nanoseconds, in bins of 128 ns, then of 131,072 ns."""

    __slots__ = ("_coarse", "_fine", "coarse", "fine", "max_ns")

    def __init__(self) -> None:
        self._fine = np.zeros(BINS, np.uint64)
        self._coarse = np.zeros(BINS, np.uint64)
        self.fine = self._fine.data
        self.coarse = self._coarse.data
        self.max_ns = 0

    def add(self, duration_ns: int, count: int = 1) -> None:
        """Count `count` durations of `duration_ns`."""
        bin_index = duration_ns >> FINE_SHIFT
        if bin_index < BINS:
            self.fine[bin_index] += count
        else:
            self.coarse[min(duration_ns >> COARSE_SHIFT, BINS - 1)] += count
        if duration_ns > self.max_ns:  # noqa: PLR1730  a call of max() costs more than the branch
            self.max_ns = duration_ns

    def sparse(self) -> list[tuple[int, int]]:
        """The bins that are not empty as (upper edge in ns, count), ascending."""
        bins: list[tuple[int, int]] = []
        for table, shift in ((self._fine, FINE_SHIFT), (self._coarse, COARSE_SHIFT)):
            filled = np.flatnonzero(table)
            edges = (filled + 1) << shift
            bins.extend(zip(edges.tolist(), table[filled].tolist(), strict=True))
        return bins


class ClientCounters:
    """The counters of a daemon's clients. Every attribute only ever grows, but `connections_open`.

    Attributes:
        heartbeats: Heartbeats answered.
        rejects: Rejects sent, indexed by RejectCode.
        slow_readers: clients cut off because they did not read their answers.
    """

    __slots__ = ("connections_accepted", "connections_open", "heartbeats", "rejects", "slow_readers")

    def __init__(self) -> None:
        self.connections_accepted = 0
        self.connections_open = 0
        self.heartbeats = 0
        self.rejects = [0] * (max(RejectCode) + 1)
        self.slow_readers = 0


class ModelCounters:
    """The counters of one model. Every attribute only ever grows.

    Attributes:
        by_status: answers by Status, indexed by its number.
        batches_by_rows: batches that ran, indexed by their rows.
        total: from a request's receive time to its answer's send time.
        queue: `total` less the time in the model.
        model: time in the model, once for each batch.
    """

    __slots__ = (
        "_lone_slow_ns",
        "_model_fine",
        "_queue_fine",
        "_total_fine",
        "batches_by_rows",
        "by_status",
        "model",
        "queue",
        "total",
    )

    def __init__(self, batch_rows_max: int) -> None:
        self.by_status = [0] * len(Status)
        self.batches_by_rows = [0] * (batch_rows_max + 1)
        self.total = LatencyCounts()
        self.queue = LatencyCounts()
        self.model = LatencyCounts()
        self._model_fine = self.model.fine
        self._total_fine = self.total.fine
        self._queue_fine = self.queue.fine
        self._lone_slow_ns = 0

    def count_lone(self, total_ns: int, infer_ns: int) -> None:
        """Count one OK answer that was a batch of its own."""
        self.by_status[0] += 1
        self.batches_by_rows[1] += 1
        if total_ns < self._lone_slow_ns:
            # An infer time is part of its total, so all three lie in the fine tables, and no maximum can rise.
            self._model_fine[infer_ns >> FINE_SHIFT] += 1
            self._total_fine[total_ns >> FINE_SHIFT] += 1
            self._queue_fine[total_ns - infer_ns >> FINE_SHIFT] += 1
            return
        self.model.add(infer_ns)
        self.total.add(total_ns)
        self.queue.add(total_ns - infer_ns)
        self._lone_slow_ns = min(self.model.max_ns, self.queue.max_ns, self.total.max_ns, BINS << FINE_SHIFT)

    def count_answers(
        self,
        receive_times_ns: npt.NDArray[np.uint64],
        statuses: npt.NDArray[np.uint16] | None,
        send_time_ns: int,
        infer_ns: int,
    ) -> None:
        """Count a segment's answers. The rows of one segment mostly came with one read, so at one time."""
        rows = len(receive_times_ns)
        if statuses is None:
            self.by_status[Status.OK] += rows
        else:
            for status, count in enumerate(np.bincount(statuses, minlength=len(Status)).tolist()):
                self.by_status[status] += count
        first = int(receive_times_ns[0])
        if first == int(receive_times_ns[-1]):
            self._count_durations(send_time_ns - first, infer_ns, rows)
            return
        times, counts = np.unique(receive_times_ns, return_counts=True)
        for time_ns, count in zip(times.tolist(), counts.tolist(), strict=True):
            self._count_durations(send_time_ns - time_ns, infer_ns, count)

    def _count_durations(self, total_ns: int, infer_ns: int, rows: int) -> None:
        self.total.add(total_ns, rows)
        self.queue.add(max(total_ns - infer_ns, 0), rows)
