"""Verdicts on a daemon, from two looks at its counters."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from sigd.daemon.admin.gate import Bounds, ShadowBounds, find_early, judge
from sigd.daemon.admin.messages import LatencyStatus, LoopStatus, ModelStatus, Status
from sigd.daemon.errors import UsageError
from sigd.daemon.shadow.statistics import OutputStatistics, Statistics
from sigd.daemon.shadow.status import ShadowStatus

SERVED = "ab" * 32
NEW = "cd" * 32
NO_LATENCY = LatencyStatus([], 0)
MODEL = ModelStatus(
    name="lob",
    path="/srv/lob.onnx",
    sha256=SERVED,
    generation=1,
    features=64,
    outputs=3,
    backend="onnxruntime",
    batch_rows_max=64,
    pending_rows=0,
    waiting_rows=0,
    answers={"OK": 100, "MODEL_ERROR": 7},
    batches_by_rows={1: 107},
    total=LatencyStatus([(128, 50), (1_048_576, 57)], 1_000_000),
    queue=NO_LATENCY,
    infer=NO_LATENCY,
)
BEFORE = Status(
    version="1",
    pid=42,
    uptime_ns=1_000_000_000,
    socket="/run/sigd/lob.sock",
    idle="block",
    clients=[],
    transports={},
    connections_open=0,
    connections_accepted=0,
    heartbeats=0,
    slow_readers=0,
    resident_bytes=1,
    rejects={},
    loop=LoopStatus(100, 0, 0, 0, 0, 0, 0.5, 10, 0, 20, 1, 0.0),
    models=[MODEL],
)
SHADOWED = ShadowBounds(NEW, rows_min=100, agreement_min=0.99, drift_max=0.5)


def later(**changes: Any) -> Status:
    """The same daemon, 10 s later, with changes of its one model."""
    return replace(BEFORE, uptime_ns=11_000_000_000, models=[replace(MODEL, **changes)])


def shadow(compared: int, agreed: int, **changes: Any) -> ShadowStatus:
    statistics = Statistics(compared=compared, agreed=agreed, **changes)
    return ShadowStatus(
        path="/srv/new.onnx",
        sha256=NEW,
        backend="onnxruntime",
        running=True,
        restarts=0,
        skipped=0,
        statistics=statistics,
    )


def test_what_happened_before_counts_for_nothing() -> None:
    total = LatencyStatus([(128, 50), (256, 200), (1_048_576, 57)], 1_000_000)
    after = later(answers={"OK": 300, "MODEL_ERROR": 7}, total=total)
    verdict = judge(BEFORE, after, Bounds(p99_us=0.3, answers_min=200, serves=SERVED))
    assert verdict.green
    assert (verdict.answers, verdict.errors, verdict.p99_us, verdict.seconds) == (200, 0, 0.256, 10.0)


def test_slow_answers_are_red() -> None:
    total = LatencyStatus([(128, 50), (256, 98), (51_200, 2), (1_048_576, 57)], 1_000_000)
    verdict = judge(BEFORE, later(total=total), Bounds(p99_us=50.0))
    assert verdict.red == ["p99 51.2 us, expected at most 50.0 us"]


@pytest.mark.parametrize(
    ("after", "bounds", "red"),
    [
        (replace(BEFORE, pid=43), Bounds(), "process 42 is now 43"),
        (
            later(answers={"OK": 100, "MODEL_ERROR": 8}),
            Bounds(),
            "1 answers are MODEL_ERROR, expected at most 0",
        ),
        (later(), Bounds(serves=NEW), f"sha256 {SERVED}; expected {NEW}"),
        (later(), Bounds(shadow=SHADOWED), "has no shadow"),
        (
            later(shadow=replace(shadow(500, 500), sha256=SERVED)),
            Bounds(shadow=SHADOWED),
            f"sha256 {SERVED}; expected {NEW}",
        ),
        (later(shadow=replace(shadow(500, 500), restarts=2)), Bounds(shadow=SHADOWED), "ended 2 times"),
        (later(shadow=shadow(500, 500, failed=3)), Bounds(shadow=SHADOWED), "failed on 3 rows"),
    ],
)
def test_what_stays_red_is_found_early(after: Status, bounds: Bounds, red: str) -> None:
    (found,) = find_early(BEFORE, after, bounds)
    assert red in found
    assert found in judge(BEFORE, after, bounds).red


def test_bounds_on_errors_are_kept() -> None:
    assert judge(BEFORE, later(answers={"OK": 100, "MODEL_ERROR": 9}), Bounds(errors_max=2)).green


def test_too_few_answers_are_no_verdict() -> None:
    verdict = judge(BEFORE, later(answers={"OK": 104, "MODEL_ERROR": 7}), Bounds(answers_min=5))
    assert not find_early(BEFORE, later(), Bounds(answers_min=5)), "they may still come"
    assert "4 answers, expected at least 5" in verdict.red[0]


@pytest.mark.parametrize(
    ("now", "red"),
    [
        (shadow(600, 599), None),
        (shadow(599, 599), "compared 99 rows, expected at least 100"),
        (shadow(600, 590), "agrees on 90.000% of 100 rows, expected at least 99.000%"),
        (shadow(600, 600, outputs=[OutputStatistics(0.0, 1.0, -0.7, 1.0, -0.7)]), "drifts by 0.7 deviations"),
    ],
)
def test_shadow_is_judged_by_what_it_compared_meanwhile(now: ShadowStatus, red: str | None) -> None:
    before = replace(BEFORE, models=[replace(MODEL, shadow=shadow(500, 500))])
    verdict = judge(before, later(shadow=now), Bounds(shadow=SHADOWED))
    assert verdict.green == (red is None)
    if red is not None:
        assert red in verdict.red[0]


def test_unknown_model_is_told_with_those_that_are_served() -> None:
    with pytest.raises(UsageError, match="no model is called 'other': it serves lob"):
        judge(BEFORE, later(), Bounds(model="other"))
