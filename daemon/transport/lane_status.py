"""What is told of a lane on the admin socket."""

from __future__ import annotations

import msgspec


class LaneStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A thread that answers clients of shared memory: see `sigd.daemon.transport.lanes`.

    Attributes:
        core: where it runs.
        sessions: that it serves.
        lent: of those, how many are its own just now; the others are Python's for an unusual request.
        requests: that it has answered.
        rounds: how often it has looked at all of its sessions; it looks when it wakes up too, every 50 ms.
        handed_over: how often it has handed one to Python, by reason.
        asleep: it waits for a bell just now.
        stalled: it has made no round for a second.
        stalls: seconds in which it made no round.
        priority: its real-time priority, 0 where it has none.
        realtime: it has that priority just now.
        yields: how often it was busy for too long, and went on at ordinary priority.
    """

    core: int
    sessions: int
    lent: int
    handed_over: dict[str, int]
    stalled: bool
    requests: int = 0
    rounds: int = 0
    asleep: bool = False
    stalls: int = 0
    priority: int = 0
    realtime: bool = False
    yields: int = 0
