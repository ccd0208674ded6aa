"""What Prometheus is told: a table of families, each with the function that reads its values off the
counters.

Names, units and labels are a contract with the dashboards that are built on them; docs/metrics.md is made
from this table. Durations of answers are in microseconds and say so in their names; all else is in
Prometheus's base units.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sigd import __version__
from sigd.daemon.admin.metrics.buckets import (
    LATENCY_BOUNDS_US,
    ROWS_BOUNDS,
    latency_histogram,
    rows_histogram,
)
from sigd.daemon.admin.metrics.family import Family, Kind, Series, Source
from sigd.daemon.admin.metrics.lane_families import LANE_FAMILIES
from sigd.daemon.admin.metrics.shadow_families import SHADOW_FAMILIES
from sigd.daemon.runtime.loop_monitor import runnable_s, usage
from sigd.daemon.runtime.process import resident_bytes
from sigd.daemon.runtime.text import as_utf8
from sigd.daemon.serving.counters import USERS_MAX
from sigd.wire.status import RejectCode, Status

if TYPE_CHECKING:
    from sigd.daemon.recording.status import RecorderStatus
    from sigd.daemon.reload.validator import Validator
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.counters import LatencyCounts
    from sigd.models.history import InstrumentPlaces


def _of_models(value: Callable[[Batcher], float]) -> Callable[[Source], Iterator[Series]]:
    """One value for each model."""

    def read(source: Source) -> Iterator[Series]:
        for batcher in source.models:
            yield (as_utf8(batcher.name),), (value(batcher),)

    return read


def _latencies(counts: Callable[[Batcher], LatencyCounts]) -> Callable[[Source], Iterator[Series]]:
    """One histogram for each model."""

    def read(source: Source) -> Iterator[Series]:
        for batcher in source.models:
            yield (as_utf8(batcher.name),), latency_histogram(counts(batcher))

    return read


def _one(value: Callable[[Source], float]) -> Callable[[Source], list[Series]]:
    """One value for the daemon."""
    return lambda source: [((), (value(source),))]


def _requests(source: Source) -> Iterator[Series]:
    for batcher in source.models:
        name, by_status = as_utf8(batcher.name), batcher.counters.by_status
        for status in Status:
            yield (name, status.name), (by_status[status],)


def _histories(batcher: Batcher) -> list[InstrumentPlaces]:
    return [session.history for session in batcher.sessions if session.history is not None]


def _batches(source: Source) -> Iterator[Series]:
    for batcher in source.models:
        yield (as_utf8(batcher.name),), rows_histogram(batcher.counters.batches_by_rows)


def _worst(source: Source) -> Iterator[Series]:
    for batcher in source.models:
        for stage in ("total", "queue", "model"):
            counts: LatencyCounts = getattr(batcher.counters, stage)
            yield (as_utf8(batcher.name), stage), (counts.max_ns / 1000,)


def _model_info(source: Source) -> Iterator[Series]:
    for batcher in source.models:
        spec, backend = batcher.spec, batcher.backend
        numbers = (spec.request_values, spec.answer_values, backend.batch_rows_max)
        yield (as_utf8(batcher.name), spec.sha256.hex(), backend.name, *map(str, numbers)), (1,)


def _reloads(source: Source) -> Iterator[Series]:
    for batcher in source.models:
        name, counters = as_utf8(batcher.name), batcher.counters
        yield (name, "served"), (counters.reloads,)
        yield (name, "refused"), (counters.reloads_refused,)


def _as_configured(source: Source) -> Iterator[Series]:
    for batcher in source.models:
        configured = source.remembered.as_configured(batcher.name, batcher.spec.path)
        yield (as_utf8(batcher.name),), (configured * 1,)


def _reverted(source: Source) -> Iterator[Series]:
    for batcher in source.models:
        yield (as_utf8(batcher.name),), ((batcher.name in source.remembered.reverted) * 1,)


def _open(source: Source) -> Iterator[Series]:
    for (transport, uid), count in sorted(source.clients.open_by().items()):
        yield (transport, str(uid)), (count,)


def _rejects(source: Source) -> Iterator[Series]:
    for code in RejectCode:
        yield (code.name,), (source.counters.rejects[code],)


def _user_rejects(source: Source) -> Iterator[Series]:
    for (code, uid), count in source.counters.user_rejects.items():
        yield (code.name, "others" if uid is None else str(uid)), (count,)


def _of_recorder(value: Callable[[RecorderStatus], float]) -> Callable[[Source], list[Series]]:
    """One value for the daemon, if it records."""
    return lambda source: [] if source.recorder is None else [((), (value(source.recorder.status()),))]


def _of_validator(value: Callable[[Validator], float]) -> Callable[[Source], list[Series]]:
    """One value for the daemon, if a process validates its models."""
    return lambda source: [] if source.validator is None else [((), (value(source.validator),))]


def _gpu_memory(source: Source) -> Iterator[Series]:
    for card, memory in source.gpu.memory().items():
        for part, held in (("total", memory.total), ("free", memory.free), ("daemon", memory.own)):
            if held is not None:
                yield (card, part), (held,)


def _switches(_source: Source) -> list[Series]:
    used = usage()
    return [(("voluntary",), (used.voluntary_switches,)), (("involuntary",), (used.involuntary_switches,))]


def _faults(_source: Source) -> list[Series]:
    used = usage()
    return [(("minor",), (used.minor_faults,)), (("major",), (used.major_faults,))]


def _runnable(_source: Source) -> list[Series]:
    waited_s = runnable_s()
    return [] if waited_s is None else [((), (waited_s,))]


_BINNED: Final = (
    "Counted in bins of 128 ns up to 1.05 ms and of 131 us beyond; each value in the first bucket that holds"
    " its whole"
    " bin, in the sum as the middle of it."
)
_MODEL: Final = ("model",)

FAMILIES: Final = (
    Family(
        "sigd_build_info",
        Kind.GAUGE,
        "1, with what serves.",
        lambda source: [((__version__, platform.python_version(), source.idle), (1,))],
        ("version", "python", "idle"),
    ),
    Family(
        "sigd_model_info",
        Kind.GAUGE,
        "1 for each model that is served, with what it is.",
        _model_info,
        ("model", "sha256", "backend", "features", "outputs", "batch_rows_max"),
    ),
    Family(
        "sigd_model_generation",
        Kind.GAUGE,
        "Rises by one with each swap of the model.",
        _of_models(lambda batcher: batcher.generation),
        _MODEL,
    ),
    Family(
        "sigd_model_as_configured",
        Kind.GAUGE,
        "1 where the model's file is the one that the configuration names, 0 where a reload named another.",
        _as_configured,
        _MODEL,
    ),
    Family(
        "sigd_model_reverted",
        Kind.GAUGE,
        "1 where the start could not open the file of the last reload, and serves the configured one again.",
        _reverted,
        _MODEL,
    ),
    Family(
        "sigd_model_reloads",
        Kind.COUNTER,
        "Reloads by outcome: served is the new file, refused where the old one serves on.",
        _reloads,
        ("model", "outcome"),
    ),
    Family(
        "sigd_validator_running",
        Kind.GAUGE,
        "1 while the process that validates models can be asked; this and the next are absent where there is"
        " none.",
        _of_validator(lambda validator: validator.running * 1),
    ),
    Family(
        "sigd_validator_restarts",
        Kind.COUNTER,
        "How often that process was started again.",
        _of_validator(lambda validator: validator.restarts),
    ),
    Family(
        "sigd_requests",
        Kind.COUNTER,
        "Requests answered, by the status of the answer. Every request is answered once.",
        _requests,
        ("model", "status"),
    ),
    Family(
        "sigd_requests_in_flight",
        Kind.GAUGE,
        "Requests received and not answered.",
        _of_models(lambda batcher: batcher.pending_rows),
        _MODEL,
    ),
    Family(
        "sigd_history_instruments",
        Kind.GAUGE,
        "Instruments whose history is kept, over all clients.",
        _of_models(lambda batcher: sum(one.instruments for one in _histories(batcher))),
        _MODEL,
    ),
    Family(
        "sigd_history_instruments_warming_up",
        Kind.GAUGE,
        "Those of them with fewer steps than an answer needs.",
        _of_models(lambda batcher: sum(one.warming_up for one in _histories(batcher))),
        _MODEL,
    ),
    Family(
        "sigd_requests_waiting",
        Kind.GAUGE,
        "Requests received and not in a batch yet.",
        _of_models(lambda batcher: batcher.waiting_rows),
        _MODEL,
    ),
    Family(
        "sigd_batch_rows",
        Kind.HISTOGRAM,
        "Rows of the batches that ran.",
        _batches,
        _MODEL,
        ROWS_BOUNDS,
    ),
    Family(
        "sigd_total_latency_us",
        Kind.HISTOGRAM,
        f"Microseconds from a request's arrival to its answer. {_BINNED}",
        _latencies(lambda batcher: batcher.counters.total),
        _MODEL,
        LATENCY_BOUNDS_US,
    ),
    Family(
        "sigd_queue_latency_us",
        Kind.HISTOGRAM,
        f"The same without the time in the model. {_BINNED}",
        _latencies(lambda batcher: batcher.counters.queue),
        _MODEL,
        LATENCY_BOUNDS_US,
    ),
    Family(
        "sigd_model_latency_us",
        Kind.HISTOGRAM,
        f"Microseconds in the model, once for each batch. {_BINNED}",
        _latencies(lambda batcher: batcher.counters.model),
        _MODEL,
        LATENCY_BOUNDS_US,
    ),
    Family(
        "sigd_latency_max_us",
        Kind.GAUGE,
        "The longest since the start, exact.",
        _worst,
        ("model", "stage"),
    ),
    Family(
        "sigd_connections_open",
        Kind.GAUGE,
        "Clients connected, by the transport of their requests (stream before their Hello) and by user id.",
        _open,
        ("transport", "uid"),
    ),
    Family(
        "sigd_connections_accepted",
        Kind.COUNTER,
        "Connections accepted.",
        _one(lambda source: source.counters.connections_accepted),
    ),
    Family(
        "sigd_rejects",
        Kind.COUNTER,
        "Connections ended with a Reject, by its code.",
        _rejects,
        ("code",),
    ),
    # Not a label of the family above, which is there with 0 before there is a Reject: only so does increase()
    # see the first.
    Family(
        "sigd_user_rejects",
        Kind.COUNTER,
        "Connections ended with a Reject, by its code and the peer's user id, each once there is one; past"
        f" {USERS_MAX} users the rest are others.",
        _user_rejects,
        ("code", "uid"),
    ),
    Family(
        "sigd_slow_readers",
        Kind.COUNTER,
        "Clients cut off because they did not read their answers.",
        _one(lambda source: source.counters.slow_readers),
    ),
    Family(
        "sigd_heartbeats",
        Kind.COUNTER,
        "Heartbeats answered.",
        _one(lambda source: source.counters.heartbeats),
    ),
    Family(
        "sigd_loop_looks",
        Kind.COUNTER,
        "How often a timer has looked how late the loop comes to it, a hundred times a second.",
        _one(lambda source: source.loop.looks),
    ),
    Family(
        "sigd_loop_stalls",
        Kind.COUNTER,
        "Hiccups of the loop: looks that came more than 1 ms late. One of n ms is seen with a chance of n - 1"
        " in ten.",
        _one(lambda source: source.loop.stalls),
    ),
    Family(
        "sigd_loop_stall_seconds",
        Kind.COUNTER,
        "How late those looks came, together.",
        _one(lambda source: source.loop.stalled_ns / 1e9),
    ),
    Family(
        "sigd_loop_stall_max_seconds",
        Kind.GAUGE,
        "The latest of them since the start.",
        _one(lambda source: source.loop.worst_ns / 1e9),
    ),
    Family(
        "sigd_loop_context_switches",
        Kind.COUNTER,
        "How often the serving thread slept (voluntary) or was made to give way to another (involuntary).",
        _switches,
        ("kind",),
    ),
    Family(
        "sigd_loop_page_faults",
        Kind.COUNTER,
        "Pages that the serving thread had to wait for, from memory (minor) or from a disk (major).",
        _faults,
        ("kind",),
    ),
    Family(
        "sigd_loop_runnable_seconds",
        Kind.COUNTER,
        "How long the serving thread could have run while another had its core; absent where the kernel does"
        " not tell.",
        _runnable,
    ),
    *LANE_FAMILIES,
    Family(
        "sigd_gc_collections",
        Kind.COUNTER,
        "Runs of Python's garbage collector, which is off while sigd serves.",
        _one(lambda source: source.garbage.collections),
    ),
    Family(
        "sigd_gc_pause_seconds",
        Kind.COUNTER,
        "How long those runs took.",
        _one(lambda source: source.garbage.paused_ns / 1e9),
    ),
    Family(
        "sigd_recorder_requests",
        Kind.COUNTER,
        "Requests recorded with their answers; this and the next three are absent where nothing is recorded.",
        _of_recorder(lambda status: status.requests),
    ),
    Family(
        "sigd_recorder_dropped",
        Kind.COUNTER,
        "Requests answered, but not recorded: the ring was full.",
        _of_recorder(lambda status: status.dropped),
    ),
    Family(
        "sigd_recorder_unstored_bytes",
        Kind.GAUGE,
        "Recorded, and not stored yet: how full the ring is.",
        _of_recorder(lambda status: status.written_bytes - status.stored_bytes),
    ),
    Family(
        "sigd_recorder_paused",
        Kind.GAUGE,
        "1 while nothing can be stored; sigd status says why.",
        _of_recorder(lambda status: bool(status.paused_because) * 1),
    ),
    *SHADOW_FAMILIES,
    Family(
        "sigd_gpu_memory_bytes",
        Kind.GAUGE,
        "Memory of the cards that models are on: total, free, and the daemon's own; read every 10 s, absent"
        " without one.",
        _gpu_memory,
        ("gpu", "part"),
    ),
    Family(
        "sigd_gpu_memory_failures",
        Kind.COUNTER,
        "How often it could not be read: NVML is not there, or the card is gone.",
        _one(lambda source: source.gpu.failures),
    ),
    Family(
        "process_cpu_seconds",
        Kind.COUNTER,
        "CPU time of the process, user and system.",
        _one(lambda _source: usage().cpu_s),
    ),
    Family(
        "process_resident_memory_bytes",
        Kind.GAUGE,
        "Resident memory of the process.",
        _one(lambda _source: resident_bytes()),
    ),
    Family(
        "process_start_time_seconds",
        Kind.GAUGE,
        "When the daemon began, in seconds since 1970.",
        _one(lambda source: source.began_s),
    ),
)
"""In the order in which they are told."""
