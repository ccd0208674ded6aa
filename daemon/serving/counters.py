"""What the daemon counts: of each model outcomes, batches and durations; of its clients how many came and
went. Only the hot path writes it.

Latencies are counted in two flat tables, 128 ns wide up to 1.05 ms and 131 us wide up to 1.07 s; what took
longer is counted beside them. Counting is one shift and one increment; a reader works out percentiles. Where
counting itself is a part of what it counts, below 65 us, single answers go to a list, which costs half as
much as a typed table, and all that can be worked out from it later is not counted at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from sigd.wire.status import RejectCode, Status

FINE_SHIFT: Final = 7
COARSE_SHIFT: Final = 17
BINS: Final = 1 << 13
END_NS: Final = BINS << COARSE_SHIFT
"""1.07 s."""
BEYOND_NS: Final = 1 << 62
"""The edge that is shown for what is longer; the longest of all is kept beside the bins."""
BEYOND_SHOWN: Final = f"> {END_NS / 1e9:.2f} s"
QUICK_BINS: Final = 1 << 9
USERS_MAX: Final = 32
"""A client that can take on many user ids must not make memory, or a scrape, grow with them."""
_OK: Final = int(Status.OK)

Table = npt.NDArray[np.uint64]


class LaneCounts(Protocol):
    """What a lane has counted of one model since it was asked last: see daemon/serving/lane.c."""

    def drain(self, kind: int, fine: Table, coarse: Table, /) -> tuple[int, int, int]:
        """Add to tables of BINS counts; returns what `LatencyCounts` calls coarse_sum_ns, beyond and max_ns.
        `kind`: 0 total, 1 queue, 2 model."""

    def drain_batches(self) -> list[int]:
        """Runs, by their rows."""


class LatencyCounts:
    """Counts of durations in nanoseconds, in bins of 128 ns, then of 131,072 ns.

    Attributes:
        quick: more counts for the first bins, of single durations; see `ModelCounters`.
        beyond: how many were longer than the bins reach, END_NS.
        coarse_sum_ns: exact sum of all that do not lie in the bins of 128 ns.
    """

    __slots__ = (
        "_coarse",
        "_coarse_table",
        "_fine",
        "_fine_table",
        "_max_ns",
        "_pull",
        "beyond",
        "coarse_sum_ns",
        "quick",
    )

    def __init__(self, pull: Callable[[], None] | None = None) -> None:
        """`pull`: called before a reader looks, to `add_of_lane` what was counted elsewhere."""
        self._pull = pull or _nothing
        self._fine_table = np.zeros(BINS, np.uint64)
        self._coarse_table = np.zeros(BINS, np.uint64)
        self._fine = self._fine_table.data
        self._coarse = self._coarse_table.data
        self.quick = [0] * QUICK_BINS
        self.beyond = 0
        self.coarse_sum_ns = 0
        self._max_ns = 0

    def add(self, duration_ns: int, count: int = 1) -> None:
        """Count `count` durations of `duration_ns`."""
        bin_index = duration_ns >> FINE_SHIFT
        if bin_index < BINS:
            self._fine[bin_index] += count
        else:
            self.coarse_sum_ns += duration_ns * count
            if duration_ns < END_NS:
                self._coarse[duration_ns >> COARSE_SHIFT] += count
            else:
                self.beyond += count
        if duration_ns > self._max_ns:  # noqa: PLR1730  a call of max() costs more than the branch
            self._max_ns = duration_ns

    def add_of_lane(self, lane: LaneCounts, kind: int) -> None:
        """Add what a lane has counted since the last time."""
        coarse_sum_ns, beyond, max_ns = lane.drain(kind, self._fine_table, self._coarse_table)
        self.coarse_sum_ns += coarse_sum_ns
        self.beyond += beyond
        self._max_ns = max(self._max_ns, max_ns)

    @property
    def max_ns(self) -> int:
        """The longest; to 128 ns where it was counted in `quick`."""
        self._pull()
        return self.known_max_ns()

    def known_max_ns(self) -> int:
        """As `max_ns`, of what was counted here; for the hot path."""
        above = self.quick[(self._max_ns >> FINE_SHIFT) + 1 :]
        if not any(above):
            return self._max_ns
        while not above[-1]:
            above.pop()
        return (((self._max_ns >> FINE_SHIFT) + 1 + len(above)) << FINE_SHIFT) - 1

    def tables(self) -> tuple[Table, Table]:
        """Copies: BINS counts in bins of 128 ns, and BINS in bins of 131,072 ns, of which the first 8 are
        empty."""
        self._pull()
        fine = self._fine_table.copy()
        fine[:QUICK_BINS] += np.array(self.quick, np.uint64)
        return fine, self._coarse_table.copy()

    def sparse(self) -> list[tuple[int, int]]:
        """The bins that are not empty as (upper edge in ns, count), ascending; what is longer than the bins
        reach has the edge BEYOND_NS."""
        fine, coarse = self.tables()
        max_ns = self.max_ns
        bins = _filled(fine[: (max_ns >> FINE_SHIFT) + 1], FINE_SHIFT)
        if max_ns >= BINS << FINE_SHIFT:
            bins += _filled(coarse, COARSE_SHIFT)
        if self.beyond:
            bins.append((BEYOND_NS, self.beyond))
        return bins

    def count(self) -> int:
        """How many durations were counted."""
        self._pull()
        return int(self._fine_table.sum()) + int(self._coarse_table.sum()) + sum(self.quick) + self.beyond


def _nothing() -> None:
    """Nothing is counted elsewhere."""


def _filled(table: Table, shift: int) -> list[tuple[int, int]]:
    filled = np.flatnonzero(table)
    return list(zip(((filled + 1) << shift).tolist(), table[filled].tolist(), strict=True))


class ClientCounters:
    """The counters of a daemon's clients. Every attribute only ever grows, but `connections_open`.

    Attributes:
        heartbeats: Heartbeats answered.
        rejects: Rejects sent, indexed by RejectCode.
        user_rejects: the same by code and user id, once the connection is closed; None stands for all users
            past the first USERS_MAX.
        slow_readers: clients cut off because they did not read their answers.
    """

    __slots__ = (
        "_users",
        "connections_accepted",
        "connections_open",
        "heartbeats",
        "rejects",
        "slow_readers",
        "user_rejects",
    )

    def __init__(self) -> None:
        self.connections_accepted = 0
        self.connections_open = 0
        self.heartbeats = 0
        self.rejects = [0] * (max(RejectCode) + 1)
        self.user_rejects: Counter[tuple[RejectCode, int | None]] = Counter()
        self.slow_readers = 0
        self._users: set[int] = set()

    def count_user_reject(self, code: RejectCode, uid: int) -> None:
        """Count a Reject with whom it was for."""
        if len(self._users) < USERS_MAX:
            self._users.add(uid)
        self.user_rejects[code, uid if uid in self._users else None] += 1


class ModelCounters:
    """The counters of one model. Everything only ever grows.

    Attributes:
        total: from a request's receive time to its answer's send time.
        queue: `total` less the time in the model.
        model: time in the model, once for each batch; in its `quick` counts are requests that ran alone, and
            only those, so that their sum says how many there were.
        reloads, reloads_refused: reloads after which another file was served, and those after which the old
            one was.
        lanes: which count too; see `pull`.
        slow_ns: a request that ran alone and took less counts in the `quick` of all three, and nowhere else.
            The fast path does that in place, as a call would cost as much again.
    """

    __slots__ = (
        "_add_model",
        "_batches_by_rows",
        "_model_quick",
        "_not_ok",
        "_queue_quick",
        "_total_quick",
        "lanes",
        "model",
        "queue",
        "reloads",
        "reloads_refused",
        "slow_ns",
        "total",
    )

    def __init__(self, batch_rows_max: int) -> None:
        self._not_ok = [0] * len(Status)
        self._batches_by_rows = [0] * (batch_rows_max + 1)
        self.lanes: list[LaneCounts] = []
        self.total = LatencyCounts(self.pull)
        self.queue = LatencyCounts(self.pull)
        self.model = LatencyCounts(self.pull)
        self._add_model = self.model.add
        self._model_quick = self.model.quick
        self._total_quick = self.total.quick
        self._queue_quick = self.queue.quick
        self.reloads = 0
        self.reloads_refused = 0
        self.slow_ns = 0

    def pull(self) -> None:
        """Take over what lanes have counted; every reader here does so first."""
        for lane in self.lanes:
            for kind, counts in enumerate((self.total, self.queue, self.model)):
                counts.add_of_lane(lane, kind)
            for rows, count in enumerate(lane.drain_batches()):
                if count:
                    self._batches_by_rows[rows] += count

    @property
    def by_status(self) -> list[int]:
        """Answers by Status, indexed by its number."""
        by_status = self._not_ok.copy()
        by_status[_OK] = self.total.count() - sum(by_status)
        return by_status

    @property
    def batches_by_rows(self) -> list[int]:
        """Batches that ran, indexed by their rows."""
        self.pull()
        batches = self._batches_by_rows.copy()
        batches[1] += sum(self._model_quick)
        return batches

    def allow_batches(self, rows_max: int) -> None:
        """Another model may run larger batches."""
        self._batches_by_rows.extend([0] * (rows_max + 1 - len(self._batches_by_rows)))

    def count_single(self, total_ns: int, infer_ns: int) -> None:
        """Count one OK answer that was a batch of its own."""
        if total_ns < self.slow_ns:
            # An infer time is part of its total, so all three lie in the quick lists.
            self._model_quick[infer_ns >> FINE_SHIFT] += 1
            self._total_quick[total_ns >> FINE_SHIFT] += 1
            self._queue_quick[total_ns - infer_ns >> FINE_SHIFT] += 1
            return
        self.count_batch(1, infer_ns)
        self._count_slow(total_ns, infer_ns)

    def count_batch(self, rows: int, infer_ns: int) -> None:
        """Count one batch that ran."""
        self._batches_by_rows[rows] += 1
        self._add_model(infer_ns)

    def count_one(self, total_ns: int, infer_ns: int) -> None:
        """Count one OK answer that was part of a batch."""
        if total_ns < self.slow_ns:
            self._total_quick[total_ns >> FINE_SHIFT] += 1
            self._queue_quick[total_ns - infer_ns >> FINE_SHIFT] += 1
            return
        self._count_slow(total_ns, infer_ns)

    def count_together(self, rows: int, infer_ns: int) -> None:
        """Count a batch whose rows were all answered OK, and spent no time in a queue."""
        self.count_batch(rows, infer_ns)
        if infer_ns < self.slow_ns:
            self._total_quick[infer_ns >> FINE_SHIFT] += rows
            self._queue_quick[0] += rows
        else:
            self._count_slow(infer_ns, infer_ns, rows)

    def count_answers(
        self,
        receive_times_ns: npt.NDArray[np.uint64],
        statuses: npt.NDArray[np.uint16] | None,
        send_time_ns: int,
        infer_ns: int,
    ) -> None:
        """Count a segment's answers. The rows of one segment mostly came with one read, so at one time."""
        rows = len(receive_times_ns)
        if statuses is not None:
            for status, count in enumerate(np.bincount(statuses, minlength=len(Status)).tolist()):
                if status != _OK:
                    self._not_ok[status] += count
        first_ns = receive_times_ns.item(0)
        if first_ns == receive_times_ns.item(-1):
            self._count_durations(send_time_ns - first_ns, infer_ns, rows)
            return
        times, counts = np.unique(receive_times_ns, return_counts=True)
        for time_ns, count in zip(times.tolist(), counts.tolist(), strict=True):
            self._count_durations(send_time_ns - time_ns, infer_ns, count)

    def _count_slow(self, total_ns: int, infer_ns: int, rows: int = 1) -> None:
        self._count_durations(total_ns, infer_ns, rows)
        # The longest total is kept to the nanosecond.
        self.slow_ns = min(self.total.known_max_ns(), QUICK_BINS << FINE_SHIFT)

    def _count_durations(self, total_ns: int, infer_ns: int, rows: int) -> None:
        self.total.add(total_ns, rows)
        self.queue.add(max(total_ns - infer_ns, 0), rows)
