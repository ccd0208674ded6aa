"""One family of what Prometheus is told, and where its values are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigd.daemon.admin.metrics.gpu_watch import GpuWatch
    from sigd.daemon.recording.recorder import Recorder
    from sigd.daemon.reload.remembered import RememberedModels
    from sigd.daemon.reload.validator import Validator
    from sigd.daemon.runtime.loop_monitor import GarbageWatch, LoopWatch
    from sigd.daemon.serving.batcher import Batcher
    from sigd.daemon.serving.counters import ClientCounters
    from sigd.daemon.shadow.supervisor import Shadows
    from sigd.daemon.transport.connections import Clients
    from sigd.daemon.transport.lanes import RunningLane


@dataclass(frozen=True)
class Source:
    """Where everything is read.

    Attributes:
        models: those that are served.
        gpu: of the GPUs that models are on.
        validator: None where everything is validated in the daemon's own process.
        recorder: None where nothing is recorded.
        shadows: of the models that have one.
        began_s: when the daemon began, in seconds since 1970.
        idle: its idle strategy.
        remembered: what the configuration and the reloads said to serve.
        lanes: none where the loop serves all.
    """

    models: Iterable[Batcher]
    clients: Clients
    counters: ClientCounters
    loop: LoopWatch
    garbage: GarbageWatch
    gpu: GpuWatch
    validator: Validator | None
    recorder: Recorder | None
    shadows: Shadows
    began_s: float
    idle: str
    remembered: RememberedModels
    lanes: Iterable[RunningLane]


class Kind(Enum):
    """Of a family."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


Series = tuple[tuple[str, ...], tuple[float, ...]]
"""Values of the labels; then one value, or those of a histogram, see `buckets.histogram`."""


@dataclass(frozen=True)
class Family:
    """One family of series.

    Attributes:
        name: of a counter, without the _total that Prometheus shows.
        words: what it counts, one line.
        bounds: of a histogram's buckets.
    """

    name: str
    kind: Kind
    words: str
    read: Callable[[Source], Iterable[Series]]
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
