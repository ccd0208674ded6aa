"""A daemon's counters as they are now, put together for the admin socket."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from time import monotonic_ns
from typing import TYPE_CHECKING

from sigd import __version__
from sigd.daemon.admin.messages import (
    InputStatus,
    LatencyStatus,
    LoopStatus,
    ModelStatus,
    Status,
)
from sigd.daemon.runtime.loop_monitor import runnable_s, usage
from sigd.daemon.runtime.process import resident_bytes
from sigd.daemon.runtime.text import as_utf8
from sigd.wire.status import RejectCode
from sigd.wire.status import Status as AnswerStatus

if TYPE_CHECKING:
    from sigd.daemon.admin.metrics.observer import Observer
    from sigd.daemon.config.config import Config
    from sigd.daemon.recording.recorder import Recorder
    from sigd.daemon.reload.remembered import RememberedModels
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.counters import ClientCounters, LatencyCounts
    from sigd.daemon.shadow.status import ShadowStatus
    from sigd.daemon.shadow.supervisor import Shadows
    from sigd.daemon.transport.connections import Clients
    from sigd.daemon.transport.lanes import Lanes


async def take(
    config: Config,
    started_ns: int,
    batchers: Iterable[Batcher],
    clients: Clients,
    counters: ClientCounters,
    observer: Observer,
    recorder: Recorder | None,
    shadows: Shadows,
    remembered: RememberedModels,
    lanes: Lanes,
) -> Status:
    """The status of a daemon that was started at `started_ns` on CLOCK_MONOTONIC.

    The loop turns while it is put together: a request waits for one step of it, not for all.
    """
    transports: dict[str, int] = {}
    for (transport, _), count in clients.open_by().items():
        transports[transport] = transports.get(transport, 0) + count
    return Status(
        version=__version__,
        pid=os.getpid(),
        uptime_ns=monotonic_ns() - started_ns,
        socket=as_utf8(config.socket_path),
        idle=config.idle.value,
        clients=clients.names(),
        transports=transports,
        connections_open=counters.connections_open,
        connections_accepted=counters.connections_accepted,
        heartbeats=counters.heartbeats,
        slow_readers=counters.slow_readers,
        resident_bytes=resident_bytes(),
        rejects={code.name: counters.rejects[code] for code in RejectCode if counters.rejects[code]},
        loop=_loop(observer),
        models=[await _model(batcher, shadows.status(batcher.name), remembered) for batcher in batchers],
        recorder=None if recorder is None else recorder.status(),
        drain_timeout_s=config.drain_timeout_s,
        lanes=[lane.status() for lane in lanes],
    )


async def _model(batcher: Batcher, shadow: ShadowStatus | None, remembered: RememberedModels) -> ModelStatus:
    backend, spec, counters = batcher.backend, batcher.spec, batcher.counters
    by_status = counters.by_status
    return ModelStatus(
        name=as_utf8(batcher.name),
        path=as_utf8(spec.path),
        sha256=spec.sha256.hex(),
        generation=batcher.generation,
        features=spec.request_values,
        outputs=spec.answer_values,
        backend=backend.name,
        batch_rows_max=backend.batch_rows_max,
        pending_rows=batcher.pending_rows,
        waiting_rows=batcher.waiting_rows,
        answers={status.name: by_status[status] for status in AnswerStatus},
        batches_by_rows={rows: count for rows, count in enumerate(counters.batches_by_rows) if count},
        total=await _latency(counters.total),
        queue=await _latency(counters.queue),
        infer=await _latency(counters.model),
        shadow=shadow,
        reloads=counters.reloads,
        reloads_refused=counters.reloads_refused,
        configured=""
        if remembered.as_configured(batcher.name, spec.path)
        else as_utf8(remembered.configured[batcher.name]),
        inputs=[
            InputStatus(as_utf8(one.name), one.dtype, one.first, one.width, one.table)
            for one in spec.input_columns
        ],
    )


def _loop(observer: Observer) -> LoopStatus:
    watch, garbage, used = observer.loop_watch, observer.garbage_watch, usage()
    return LoopStatus(
        looks=watch.looks,
        stalls=watch.stalls,
        stalled_ns=watch.stalled_ns,
        worst_ns=watch.worst_ns,
        collections=garbage.collections,
        collecting_ns=garbage.paused_ns,
        runnable_s=runnable_s(),
        **used._asdict(),
    )


def line(models: Iterable[Batcher], counters: ClientCounters) -> str:
    """What `systemctl status` shows. Said from the loop while it serves, so it adds nothing up."""
    served = "; ".join(
        f"{as_utf8(batcher.name)} ({batcher.spec.request_values} -> {batcher.spec.answer_values}) on"
        f" {batcher.backend.name},"
        f" generation {batcher.generation}"
        for batcher in models
    )
    return f"{counters.connections_open} clients; {served}"


async def _latency(counts: LatencyCounts) -> LatencyStatus:
    await asyncio.sleep(0)
    return LatencyStatus(counts.sparse(), counts.max_ns)
