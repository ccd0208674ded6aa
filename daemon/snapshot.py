"""A daemon's counters as they are now, put together for whoever asks on the admin socket."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING

from sigd import __version__
from sigd.daemon.admin import LatencyStatus, ModelStatus, Status
from sigd.daemon.process import resident_bytes
from sigd.wire.status import RejectCode
from sigd.wire.status import Status as AnswerStatus

if TYPE_CHECKING:
    from sigd.daemon.batcher import Batcher
    from sigd.daemon.clients import Clients
    from sigd.daemon.config import Config
    from sigd.daemon.counters import ClientCounters, LatencyCounts


def take(
    config: Config, started_ns: int, batchers: Iterable[Batcher], clients: Clients, counters: ClientCounters
) -> Status:
    """The status of a daemon that was started at `started_ns` on CLOCK_MONOTONIC."""
    return Status(
        version=__version__,
        pid=os.getpid(),
        uptime_ns=monotonic_ns() - started_ns,
        socket=printable(config.socket_path),
        idle=config.idle.value,
        clients=clients.names(),
        connections_open=counters.connections_open,
        connections_accepted=counters.connections_accepted,
        heartbeats=counters.heartbeats,
        slow_readers=counters.slow_readers,
        resident_bytes=resident_bytes(),
        rejects={code.name: counters.rejects[code] for code in RejectCode if counters.rejects[code]},
        models=[_model(batcher) for batcher in batchers],
    )


def _model(batcher: Batcher) -> ModelStatus:
    backend, spec, counters = batcher.backend, batcher.spec, batcher.counters
    return ModelStatus(
        name=printable(batcher.name),
        path=printable(spec.path),
        sha256=spec.sha256.hex(),
        generation=batcher.generation,
        features=spec.features,
        outputs=spec.outputs,
        backend=backend.name,
        batch_rows_max=backend.batch_rows_max,
        pending_rows=batcher.pending_rows,
        answers={status.name: counters.by_status[status] for status in AnswerStatus},
        batches_by_rows={rows: count for rows, count in enumerate(counters.batches_by_rows) if count},
        total=_latency(counters.total),
        queue=_latency(counters.queue),
        infer=_latency(counters.model),
    )


def line(models: Iterable[Batcher], counters: ClientCounters) -> str:
    """What `systemctl status` shows. Said from the loop while it serves, so it adds nothing up."""
    served = "; ".join(
        f"{printable(batcher.name)} ({batcher.spec.features} -> {batcher.spec.outputs}) on {batcher.backend.name},"
        f" generation {batcher.generation}"
        for batcher in models
    )
    return f"{counters.connections_open} clients; {served}"


def printable(path: Path | str) -> str:
    """A path may hold bytes that are no UTF-8; they are shown as U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def _latency(counts: LatencyCounts) -> LatencyStatus:
    return LatencyStatus(counts.sparse(), counts.max_ns)
