"""Answers of an admin socket, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sigd.daemon.admin.messages import LatencyStatus, LoopStatus, ModelStatus, Status

NOTHING = LatencyStatus([], 0)
MODEL = ModelStatus(
    name="lob",
    path="/lob.onnx",
    sha256="ab" * 32,
    generation=1,
    features=64,
    outputs=3,
    backend="onnxruntime",
    batch_rows_max=64,
    pending_rows=0,
    waiting_rows=0,
    answers={"OK": 0, "BUSY": 0},
    batches_by_rows={},
    total=NOTHING,
    queue=NOTHING,
    infer=NOTHING,
)
STATUS = Status(
    version="1.2.3",
    pid=100,
    uptime_ns=10_000_000_000,
    socket="/run/sigd/sigd.sock",
    idle="spin",
    clients=[],
    transports={},
    connections_open=0,
    connections_accepted=0,
    heartbeats=0,
    slow_readers=0,
    resident_bytes=200 << 20,
    rejects={},
    loop=LoopStatus(0, 0, 0, 0, 0, 0, 5.0, 0, 0, 0, 0, 0.5),
    models=[MODEL],
)

MakeStatus = Callable[..., Status]
MakeModel = Callable[..., ModelStatus]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """A model with what is given, and nothing else, counted."""

    def make(**changed: Any) -> ModelStatus:
        return msgspec.structs.replace(MODEL, **changed)

    return make


@pytest.fixture(scope="session")
def make_status() -> MakeStatus:
    """A daemon, `seconds` after its first ten; `loop` is what changes of its loop."""

    def make(seconds: float = 0.0, *, loop: dict[str, Any] | None = None, **changed: Any) -> Status:
        return msgspec.structs.replace(
            STATUS,
            uptime_ns=STATUS.uptime_ns + round(seconds * 1e9),
            loop=msgspec.structs.replace(STATUS.loop, **(loop or {})),
            **changed,
        )

    return make
