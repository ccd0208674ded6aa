"""What is wrong with a capture that can still be read: counted, and the first of each kind kept with line and
time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from sigd.models.market.events import BestQuote, MarketEvent, Trade

FIRST_KEPT: Final = 5
"""So many of each kind are kept with their place; all are counted."""

FaultKind: TypeAlias = Literal[
    "gap",
    "crossed book",
    "impossible event",
    "out of order",
    "repeated",
    "clock back",
    "torn line",
    "damaged file",
]


class CaptureFault(msgspec.Struct, frozen=True, kw_only=True):
    """One of them.

    Attributes:
        line: in the capture, from 1; 0 where the file itself is damaged behind the last line.
        time_ns: receive time of that line, or of the last one before it, Unix ns.
        problem: what was found and what was expected.
    """

    kind: FaultKind
    line: int
    time_ns: int
    problem: str

    def __str__(self) -> str:
        return f"line {self.line:,}, at {self.time_ns / 1e9:.6f}: {self.kind}: {self.problem}"


def counts_shown(counts: Mapping[FaultKind, int]) -> str:
    """Of faults by kind, for messages: "1 gap, 3 out of order"."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def fault_lines(counts: Mapping[FaultKind, int], first: Iterable[CaptureFault]) -> list[str]:
    """The counts and the first faults of each kind, a line each; none where there is none."""
    return [f"capture  {counts_shown(counts)}", *(f"         {fault}" for fault in first)] if counts else []


class CaptureFaults:
    """All of one capture.

    Attributes:
        counts: by kind, only kinds that occurred.
        first: the first FIRST_KEPT of each kind, in the order of the capture.
    """

    def __init__(self) -> None:
        self.counts: dict[FaultKind, int] = {}
        self.first: list[CaptureFault] = []
        self._update_id = -1
        self._trade_id = -1

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        """The counts; see `counts_shown`."""
        return counts_shown(self.counts)

    def add(self, kind: FaultKind, line: int, time_ns: int, problem: str) -> None:
        """Count one."""
        count = self.counts.get(kind, 0) + 1
        self.counts[kind] = count
        if count <= FIRST_KEPT:
            self.first.append(CaptureFault(kind=kind, line=line, time_ns=time_ns, problem=problem))

    def look(self, event: MarketEvent, line: int) -> None:
        """Whether an event follows the one of its kind before it. Depth messages are the order book's
        business."""
        if isinstance(event, BestQuote):
            if event.update_id < self._update_id:
                problem = (
                    f"a quote of update {event.update_id} follows one of {self._update_id}, expected a later"
                    " one"
                )
                self.add("out of order", line, event.receive_ns, problem)
            self._update_id = event.update_id
        elif isinstance(event, Trade):
            if event.trade_id <= self._trade_id:
                kind: FaultKind = "repeated" if event.trade_id == self._trade_id else "out of order"
                problem = f"trade {event.trade_id} follows trade {self._trade_id}, expected a later one"
                self.add(kind, line, event.receive_ns, problem)
            self._trade_id = event.trade_id
