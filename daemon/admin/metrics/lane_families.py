"""What Prometheus is told of lanes, a part of `sigd.daemon.admin.metrics.families`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sigd.daemon.admin.metrics.family import Family, Kind, Series, Source
from sigd.daemon.transport.lanes import HANDED_FOR

if TYPE_CHECKING:
    from sigd.daemon.transport.lane_status import LaneStatus


def _of_lanes(value: Callable[[LaneStatus], float]) -> Callable[[Source], Iterator[Series]]:
    """One value for each lane."""

    def read(source: Source) -> Iterator[Series]:
        for lane in source.lanes:
            yield (str(lane.core),), (value(lane.status()),)

    return read


def _sessions(source: Source) -> Iterator[Series]:
    for lane in source.lanes:
        yield (str(lane.core), "lane"), (lane.lent,)
        yield (str(lane.core), "python"), (lane.sessions - lane.lent,)


def _handed_over(source: Source) -> Iterator[Series]:
    for lane in source.lanes:
        for reason in filter(None, HANDED_FOR):
            yield (str(lane.core), reason), (lane.handed_over[reason],)


_CORE: Final = ("core",)

LANE_FAMILIES: Final = (
    Family(
        "sigd_lane_sessions",
        Kind.GAUGE,
        "Sessions of a lane, by what has them just now: the lane, or Python for an unusual request; this and"
        " the next eight are absent where there is no lane.",
        _sessions,
        ("core", "owner"),
    ),
    Family(
        "sigd_lane_requests",
        Kind.COUNTER,
        "Requests that the lane has answered; they are in the figures of their model too.",
        _of_lanes(lambda lane: lane.requests),
        _CORE,
    ),
    Family(
        "sigd_lane_handed_over",
        Kind.COUNTER,
        "How often the lane has handed a session to Python, by the reason: see the tuning page.",
        _handed_over,
        ("core", "reason"),
    ),
    Family(
        "sigd_lane_rounds",
        Kind.COUNTER,
        "How often the lane has looked at its sessions; one that sleeps looks 20 times a second.",
        _of_lanes(lambda lane: lane.rounds),
        _CORE,
    ),
    Family(
        "sigd_lane_asleep",
        Kind.GAUGE,
        "1 while the lane waits for a bell.",
        _of_lanes(lambda lane: lane.asleep * 1),
        _CORE,
    ),
    Family(
        "sigd_lane_stalled",
        Kind.GAUGE,
        "1 while the lane has made no round for a second: something else has its core.",
        _of_lanes(lambda lane: lane.stalled * 1),
        _CORE,
    ),
    Family(
        "sigd_lane_stalled_seconds",
        Kind.COUNTER,
        "Seconds without a round, looked at once a second.",
        _of_lanes(lambda lane: lane.stalls),
        _CORE,
    ),
    Family(
        "sigd_lane_realtime",
        Kind.GAUGE,
        "1 while the lane has the real-time priority that lane_priority gives it.",
        _of_lanes(lambda lane: lane.realtime * 1),
        _CORE,
    ),
    Family(
        "sigd_lane_yields",
        Kind.COUNTER,
        "How often the lane was busy for longer than lane_busy_ms_max, and went on at ordinary priority.",
        _of_lanes(lambda lane: lane.yields),
        _CORE,
    ),
)
"""In the order in which they are told."""
