"""What the daemon and the process that runs a shadow say to each other: one packet each."""

from __future__ import annotations

import msgspec

from sigd.models.reading import AS_IT_IS, ReadOptions

MESSAGE_BYTES_MAX = 1 << 16


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run; see `sigd.models.registry.BackendOptions` and `sigd.models.gpu.options.GpuOptions`.

    Attributes:
        path: of the shadow's file.
        served: of the file that it is compared with, as it is told to people.
        features, outputs: of that one.
        sample: share of the rows.
        cores: where it may run.
        in_hurry: the daemon waits for it; else it is opened in idle time, as everything after that runs.
        reading: what the file leaves open; its own sizes are those of the served model.
        demand_trust: whether the file must be one that others cannot change.
    """

    path: bytes
    backend: str
    name: str
    batch_rows_max: int
    gpu: int
    mapped_io: bool
    device_timeout_ms: int
    served: str
    features: int
    outputs: int
    sample: float
    cores: list[int]
    in_hurry: bool
    demand_trust: bool
    log_format: str
    reading: ReadOptions = AS_IT_IS


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The shadow is open, and takes what comes from now on."""

    sha256: str
    backend: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """It cannot be run.

    Attributes:
        lacking: True where the machine or the installation lacks something, not the file.
    """

    reason: str
    lacking: bool


Said = Opened | Refused

encode = msgspec.msgpack.encode


def decode_task(message: bytes) -> Task:
    """The task in a packet of `encode`."""
    return msgspec.msgpack.decode(message, type=Task)


def decode_said(message: bytes) -> Said:
    """What the process said, from a packet of `encode`."""
    said: Said = msgspec.msgpack.decode(message, type=Said)
    return said
