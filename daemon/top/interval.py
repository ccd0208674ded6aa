"""What a daemon did between two answers of its admin socket: rates, and percentiles of that time alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from sigd.daemon.admin.client import percentile_ns
from sigd.daemon.admin.messages import Bins, LatencyStatus, ModelStatus, Status
from sigd.daemon.serving.counters import BEYOND_NS
from sigd.daemon.transport.lane_status import LaneStatus

_COARSE_FROM_NS: Final = 1 << 20
"""Bins that end later are 131,072 ns wide, the others 128."""
Key = TypeVar("Key", str, int)


class Durations(msgspec.Struct, frozen=True):
    """Of one stage, in microseconds; all 0 where there were none.

    What took longer than the bins reach, 1.07 s, counts with the longest since the start, which is a bound.

    Attributes:
        mean_us: from the middles of the bins.
        max_us: the upper edge of the last bin, or the longest since the start where that is less.
        longer_than_1073742_us: so many took longer than the bins reach.
        max_is_new: the longest since the start is of this interval, so `max_us` is exact.
    """

    count: int
    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float
    p99_9_us: float
    max_us: float
    longer_than_1073742_us: int = 0
    max_is_new: bool = False

    def lies_beyond(self, percent: float) -> bool:
        """Whether a percentile is one of those that took longer than the bins reach."""
        within = self.count - self.longer_than_1073742_us
        return within < self.count * percent / 100


class ModelInterval(msgspec.Struct, frozen=True):
    """One model.

    Attributes:
        answers: by status, without those of which there were none.
        rows_a_batch: on average, 0 where there was no batch.
        total, queue, model: as in `ModelStatus`.
        reloads, reloads_refused: since the start, for there are few.
    """

    name: str
    features: int
    outputs: int
    generation: int
    backend: str
    sha256: str
    in_flight: int
    waiting: int
    requests_a_second: float
    answers: dict[str, int]
    batches_a_second: float
    rows_a_batch: float
    total: Durations
    queue: Durations
    model: Durations
    reloads: int
    reloads_refused: int


class LaneInterval(msgspec.Struct, frozen=True):
    """One lane.

    Attributes:
        handed_over: how often it handed a session to Python, by reason.
        stalled: it has made no round for a second.
    """

    core: int
    sessions: int
    requests_a_second: float
    handed_over: dict[str, int]
    asleep: bool
    stalled: bool


class Interval(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        seconds: its length.
        restarted: another daemon answered than before, and this is all that it did.
        clients: how many are connected under each name.
        cpu: share of one core.
        waited: share of the time in which the serving thread could have run while another had its core; None
            where the kernel does not tell.
        recorded_a_second: None where nothing is recorded.
        dropped: answered, but not recorded.
        paused_because: why nothing is being stored, "" where all is well.
    """

    seconds: float
    restarted: bool
    version: str
    pid: int
    socket: str
    idle: str
    uptime_s: float
    resident_bytes: int
    models: list[ModelInterval]
    clients: dict[str, int]
    transports: dict[str, int]
    accepted: int
    slow_readers: int
    rejects: dict[str, int]
    stalls: int
    stalled_ms: float
    involuntary_switches: int
    major_faults: int
    collections: int
    cpu: float
    waited: float | None
    recorded_a_second: float | None
    dropped: int
    paused_because: str
    lanes: list[LaneInterval]


def between(before: Status | None, after: Status) -> Interval:
    """From one status to the next; from the daemon's start where there is none before, or it was another
    daemon's."""
    restarted = before is not None and (before.pid != after.pid or before.uptime_ns > after.uptime_ns)
    if restarted:
        before = None
    seconds = max((after.uptime_ns - (before.uptime_ns if before else 0)) / 1e9, 1e-9)
    models = {model.name: model for model in before.models} if before else {}
    loop, was = after.loop, before.loop if before else None
    recorder, recorded, dropped = after.recorder, 0, 0
    if before is not None and before.recorder is not None:
        recorded, dropped = before.recorder.requests, before.recorder.dropped
    waited_s = None
    if loop.runnable_s is not None:
        waited_s = loop.runnable_s - ((was.runnable_s or 0.0) if was else 0.0)
    return Interval(
        seconds=seconds,
        restarted=restarted,
        version=after.version,
        pid=after.pid,
        socket=after.socket,
        idle=after.idle,
        uptime_s=after.uptime_ns / 1e9,
        resident_bytes=after.resident_bytes,
        models=[_model(models.get(model.name), model, seconds) for model in after.models],
        clients=dict(Counter(after.clients).most_common()),
        transports=after.transports,
        accepted=after.connections_accepted - (before.connections_accepted if before else 0),
        slow_readers=after.slow_readers - (before.slow_readers if before else 0),
        rejects=_grown(before.rejects if before else {}, after.rejects),
        stalls=loop.stalls - (was.stalls if was else 0),
        stalled_ms=(loop.stalled_ns - (was.stalled_ns if was else 0)) / 1e6,
        involuntary_switches=loop.involuntary_switches - (was.involuntary_switches if was else 0),
        major_faults=loop.major_faults - (was.major_faults if was else 0),
        collections=loop.collections - (was.collections if was else 0),
        cpu=(loop.cpu_s - (was.cpu_s if was else 0.0)) / seconds,
        waited=None if waited_s is None else waited_s / seconds,
        recorded_a_second=None if recorder is None else (recorder.requests - recorded) / seconds,
        dropped=0 if recorder is None else recorder.dropped - dropped,
        paused_because="" if recorder is None else recorder.paused_because,
        lanes=_lanes(before.lanes if before else [], after.lanes, seconds),
    )


def _lanes(before: Iterable[LaneStatus], after: Iterable[LaneStatus], seconds: float) -> list[LaneInterval]:
    was = {lane.core: lane for lane in before}
    return [
        LaneInterval(
            core=lane.core,
            sessions=lane.sessions,
            requests_a_second=(lane.requests - (was[lane.core].requests if lane.core in was else 0))
            / seconds,
            handed_over=_grown(was[lane.core].handed_over if lane.core in was else {}, lane.handed_over),
            asleep=lane.asleep,
            stalled=lane.stalled,
        )
        for lane in after
    ]


def _model(before: ModelStatus | None, after: ModelStatus, seconds: float) -> ModelInterval:
    if before and any(after.answers.get(status, 0) < count for status, count in before.answers.items()):
        # It was withdrawn meanwhile, and another one has its name.
        before = None
    answers = _grown(before.answers if before else {}, after.answers)
    batches = _grown(before.batches_by_rows if before else {}, after.batches_by_rows)
    ran = sum(batches.values())
    return ModelInterval(
        name=after.name,
        features=after.features,
        outputs=after.outputs,
        generation=after.generation,
        backend=after.backend,
        sha256=after.sha256,
        in_flight=after.pending_rows,
        waiting=after.waiting_rows,
        requests_a_second=sum(answers.values()) / seconds,
        answers=answers,
        batches_a_second=ran / seconds,
        rows_a_batch=sum(rows * count for rows, count in batches.items()) / ran if ran else 0.0,
        total=_durations(before.total if before else None, after.total),
        queue=_durations(before.queue if before else None, after.queue),
        model=_durations(before.infer if before else None, after.infer),
        reloads=after.reloads,
        reloads_refused=after.reloads_refused,
    )


def _durations(before: LatencyStatus | None, after: LatencyStatus) -> Durations:
    grown = _grown(dict(before.bins) if before else {}, dict(after.bins))
    # Beyond the bins the longest of all is the only bound that is known.
    bins = sorted((after.max_ns if edge_ns == BEYOND_NS else edge_ns, n) for edge_ns, n in grown.items())
    count = sum(number for _, number in bins)
    if not count:
        return Durations(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def at(percent: float) -> float:
        return min(percentile_ns(bins, percent), after.max_ns) / 1000

    return Durations(
        *(count, _mean_us(bins, count), at(50), at(90), at(99), at(99.9), at(100)),
        longer_than_1073742_us=grown.get(BEYOND_NS, 0),
        max_is_new=after.max_ns > (before.max_ns if before else 0),
    )


def _mean_us(bins: Bins, count: int) -> float:
    middles = ((edge_ns - (64 if edge_ns <= _COARSE_FROM_NS else 65_536), number) for edge_ns, number in bins)
    return sum(middle_ns * number for middle_ns, number in middles) / count / 1000


def _grown(before: Mapping[Key, int], after: Mapping[Key, int]) -> dict[Key, int]:
    """By how much each has, without those that have not."""
    grown = {key: count - before.get(key, 0) for key, count in after.items()}
    return {key: count for key, count in grown.items() if count}


def share_of_model(model: ModelInterval) -> float:
    """Of the time that requests took, the part in the model: between 0 and 1."""
    if not model.total.mean_us:
        return 0.0
    return min(max(1 - model.queue.mean_us / model.total.mean_us, 0.0), 1.0)


def busiest(models: Iterable[ModelInterval]) -> list[ModelInterval]:
    """Those with most requests first; of equals, the first ones."""
    return sorted(models, key=lambda model: -model.requests_a_second)
