"""What is asked on the admin socket, and what is answered: one JSON line each.

{"op": "status"}  ->  a `Status`
{"op": "reload", "model": "/models/new.onnx"}  ->  a `ReloadAnswer`, once the model is served or refused
{"op": "drain"}  ->  a `DrainAnswer`, once everything accepted is answered
"""

from __future__ import annotations

from typing import Final

import msgspec

from sigd.daemon.recording.status import RecorderStatus
from sigd.daemon.shadow.status import ShadowStatus
from sigd.daemon.transport.lane_status import LaneStatus

REQUEST_BYTES_MAX: Final = 4096
ANSWER_TIMEOUT_S: Final = 5.0
RELOAD_S: Final = 600.0
"""What a model may take to be validated, and then as much to be loaded; only the former has a limit of its
own."""
END_GRACE_S: Final = 5.0
"""What a stop takes at most besides the wait for clients."""

Bins = list[tuple[int, int]]
"""Counts of durations that are not zero: (upper edge in ns, count), ascending."""


class LatencyStatus(msgspec.Struct, frozen=True):
    """Durations since the start, in ns; bins are 128 ns wide up to 1.05 ms, then 131 us up to 1.07 s. What
    took longer has the upper edge 2**62."""

    bins: Bins
    max_ns: int


class InputStatus(msgspec.Struct, frozen=True):
    """One input of a model as columns of a request: see models.onnx.columns.Columns."""

    name: str
    dtype: str
    first: int
    width: int
    table: int


class ModelStatus(msgspec.Struct, frozen=True):
    """A model that is being served, with its own counters: see daemon.serving.counters.ModelCounters for what
    each counts."""

    name: str
    path: str
    sha256: str
    generation: int
    features: int
    outputs: int
    backend: str
    batch_rows_max: int
    pending_rows: int
    waiting_rows: int
    answers: dict[str, int]
    batches_by_rows: dict[int, int]
    total: LatencyStatus
    queue: LatencyStatus
    infer: LatencyStatus
    shadow: ShadowStatus | None = None
    reloads: int = 0
    reloads_refused: int = 0
    configured: str = ""
    inputs: list[InputStatus] = []


class LoopStatus(msgspec.Struct, frozen=True):
    """How the loop and its thread fare: see daemon.runtime.loop_monitor for what each counts."""

    looks: int
    stalls: int
    stalled_ns: int
    worst_ns: int
    collections: int
    collecting_ns: int
    cpu_s: float
    minor_faults: int
    major_faults: int
    voluntary_switches: int
    involuntary_switches: int
    runnable_s: float | None


class Status(msgspec.Struct, frozen=True):
    """A daemon's counters. See daemon.serving.counters.ClientCounters for what each one of its clients
    counts.

    Attributes:
        transports: connections that are open, by transport.
        models: what is served, the default model first.
        recorder: None where nothing is recorded.
        drain_timeout_s: how long a stop waits for clients.
        lanes: empty where the loop serves all.
    """

    version: str
    pid: int
    uptime_ns: int
    socket: str
    idle: str
    clients: list[str]
    transports: dict[str, int]
    connections_open: int
    connections_accepted: int
    heartbeats: int
    slow_readers: int
    resident_bytes: int
    rejects: dict[str, int]
    loop: LoopStatus
    models: list[ModelStatus]
    recorder: RecorderStatus | None = None
    drain_timeout_s: float = 0.0
    lanes: list[LaneStatus] = []


class AdminRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What may be asked.

    Attributes:
        name: reload: which model, "" being the default one, or without `model` all of them.
        model: reload: the file, an absolute path; "" is the one that is served.
        allow_new_shape: reload: see `Reloader.reload`.
    """

    op: str
    name: str = ""
    model: str = ""
    allow_new_shape: bool = False


class ModelReload(msgspec.Struct, frozen=True):
    """How the reload of one model went.

    Attributes:
        error: why it still is what it was; "" where it is the new one.
        path, sha256, generation, features, outputs, backend: what is served now.
        seconds: how long it took.
        note: what the next start of the daemon does about it.
        withdrawn: clients that were told to go, for the shape that they were promised is served no more.
    """

    name: str
    error: str
    path: str
    sha256: str
    generation: int
    features: int
    outputs: int
    backend: str
    seconds: float
    withdrawn: int
    note: str = ""


class ReloadAnswer(msgspec.Struct, frozen=True):
    """How a reload went, for each model that was to be reloaded."""

    models: list[ModelReload]


class DrainAnswer(msgspec.Struct, frozen=True):
    """How the daemon ends.

    Attributes:
        exit_code: 0 where everything that was accepted is answered.
    """

    exit_code: int


class AdminError(msgspec.Struct):
    """The answer to a question that could not be answered."""

    error: str
