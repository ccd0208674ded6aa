"""Which request goes next on which connection, and when a run is over: no clock, no socket, times are
arguments.

The rules are those of `native/loadgen.cpp`. Open loop: request i belongs to connection i mod N and is due at
its intended time, whatever happened before; it goes when its connection has room. Closed loop: a connection
with room sends.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from sigd.bench.load.contract import LATE_NS, LoadPlan

#: Numbers of one connection can never be taken for those of another.
SEQUENCES_PER_CONNECTION = 1 << 40


class Asked(NamedTuple):
    """A request that was sent. Times in ns; `frame` is its row in the plan's frames."""

    sequence: int
    frame: int
    intended_ns: int
    sent_ns: int
    measured: bool


class Pacer:
    """The state of one run.

    Attributes:
        begin_ns: the start of the measurement.
        sent: measured requests that were sent.
        late_sends: of those, sent more than LATE_NS after their intended time.
        late_worst_ns: the worst lateness.
        last_sent_ns: the last send.
    """

    def __init__(self, plan: LoadPlan, begin_ns: int) -> None:
        self.begin_ns = begin_ns
        self.sent = 0
        self.late_sends = 0
        self.late_worst_ns = 0
        self.last_sent_ns = begin_ns
        self._plan = plan
        self._open_loop = plan.intended_ns is not None
        intended = plan.intended_ns if plan.intended_ns is not None else np.empty(0, dtype=np.int64)
        # Python ints: an element of an array costs several times as much to read.
        self._due_ns: list[int] = (intended + begin_ns).tolist()
        self._warmups = int(np.searchsorted(intended, 0))
        self._frames = len(plan.frames)
        self._next = list(range(plan.connections))
        self._turns = list(range(plan.connections))
        self._issued = 0
        self._unanswered: list[deque[Asked]] = [deque() for _ in range(plan.connections)]
        self._sequence = [(number + 1) * SEQUENCES_PER_CONNECTION for number in range(plan.connections)]

    @property
    def requests(self) -> int:
        """How many requests were meant to be measured."""
        return len(self._due_ns) - self._warmups if self._open_loop else self.sent

    def take_due(self, connection: int, now_ns: int) -> list[Asked]:
        """The requests that go over `connection` now; they count as sent at `now_ns`."""
        room = self._plan.in_flight - len(self._unanswered[connection])
        taken: list[Asked] = []
        while len(taken) < room:
            asked = (
                self._open_next(connection, now_ns)
                if self._open_loop
                else self._closed_next(connection, now_ns)
            )
            if asked is None:
                break
            taken.append(asked)
            self._unanswered[connection].append(asked)
        return taken

    def oldest(self, connection: int) -> Asked | None:
        """The request whose answer must come next on `connection`."""
        unanswered = self._unanswered[connection]
        return unanswered[0] if unanswered else None

    def answered(self, connection: int) -> None:
        """The oldest request of `connection` has been answered."""
        self._unanswered[connection].popleft()

    def unanswered(self, connection: int) -> int:
        """How many requests of `connection` wait for their answer."""
        return len(self._unanswered[connection])

    def over(self, now_ns: int) -> bool:
        """True when everything is sent and answered, or when an answer is overdue by the plan's
        `stall_ns`."""
        waiting = False
        for unanswered in self._unanswered:
            if unanswered:
                waiting = True
                if now_ns - unanswered[0].sent_ns > self._plan.stall_ns:
                    return True
        return not waiting and not self._more_to_send(now_ns)

    def _more_to_send(self, now_ns: int) -> bool:
        if self._open_loop:
            return any(index < len(self._due_ns) for index in self._next)
        return not self._closed_loop_ends(now_ns)

    def _open_next(self, connection: int, now_ns: int) -> Asked | None:
        index = self._next[connection]
        if index >= len(self._due_ns) or self._due_ns[index] > now_ns:
            return None
        if self._plan.behind_ns and now_ns - self._due_ns[index] > self._plan.behind_ns:
            self._next = [len(self._due_ns)] * self._plan.connections
            return None
        self._next[connection] = index + self._plan.connections
        measured = index >= self._warmups
        number = index - self._warmups if measured else index
        return self._asked(connection, number, self._due_ns[index], now_ns, measured)

    def _closed_next(self, connection: int, now_ns: int) -> Asked | None:
        if self._closed_loop_ends(now_ns):
            return None
        number = self._issued
        self._issued += 1
        return self._asked(connection, number, now_ns, now_ns, now_ns >= self.begin_ns)

    def _closed_loop_ends(self, now_ns: int) -> bool:
        if self._plan.requests:
            return self.sent >= self._plan.requests
        return now_ns >= self.begin_ns + self._plan.duration_ns

    def _asked(self, connection: int, number: int, intended_ns: int, now_ns: int, measured: bool) -> Asked:
        if self._plan.steps:
            number = self._turns[connection]
            self._turns[connection] += self._plan.connections
        sequence = self._sequence[connection]
        self._sequence[connection] = sequence + 1
        if measured:
            late_ns = now_ns - intended_ns
            self.sent += 1
            self.late_sends += late_ns > LATE_NS
            self.late_worst_ns = max(self.late_worst_ns, late_ns)
            self.last_sent_ns = now_ns
        return Asked(sequence, number % self._frames, intended_ns, now_ns, measured)
