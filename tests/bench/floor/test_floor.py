"""The floor: its arithmetic over rounds, the timing process, and the whole of it with a daemon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bench.measurements import measured
from tests.e2e.test_any_model_built import network

from sigd.bench import histogram
from sigd.bench.errors import PeerFailed
from sigd.bench.floor import floor
from sigd.bench.floor.bare_backend import BareBackend, BareCalls, other_rows, time_calls
from sigd.bench.floor.floor import FloorRound
from sigd.bench.load.contract import LoadPlan, Measurement
from sigd.bench.load.native import NativeLoad
from sigd.bench.load.requests import random_frames
from sigd.bench.native.build import NativePrograms
from sigd.models.registry import open_backend
from sigd.wire.fields import HEADER_BYTES
from sigd.wire.messages import Hello, Welcome
from sigd.wire.status import Transport


def bare(latency_us: float, rows: int = 1) -> BareCalls:
    counts = histogram.count(np.full(1000, round(latency_us * 1000)))
    return BareCalls(rows, 1000, round(1000 * latency_us * 1000), counts)


def one_round(sigd_us: float, signals: int = 1000) -> FloorRound:
    return FloorRound(measured(4.0), bare(6.0), bare(64.0, rows=64), measured(sigd_us, signals))


def test_the_ratio_is_sigd_over_echo_and_backend_together() -> None:
    p50, p99 = floor.ratios([one_round(14.0)] * 3)
    assert (p50.percentile, p99.percentile) == (50.0, 99.0)
    assert p50.floor_ns == pytest.approx(10_000, rel=0.002)
    assert p50.pooled == pytest.approx(1.4, rel=0.002)
    assert p50.median == pytest.approx(1.4, rel=0.002)


def test_one_bad_round_does_not_move_the_median() -> None:
    p50, _ = floor.ratios([one_round(14.0), one_round(14.0), one_round(90.0, signals=5000)])
    assert p50.median == pytest.approx(1.4, rel=0.002)
    assert p50.pooled == pytest.approx(9.0, rel=0.002), "pooled, the many of the bad round win"


def test_throughput_is_held_against_the_backend_at_its_largest_batch() -> None:
    # 64 rows in 64 us are a million rows a second.
    rounds = [one_round(14.0, signals) for signals in (500_000, 600_000, 700_000)]
    assert floor.throughput_ratio(rounds) == pytest.approx(0.6)
    assert floor.pool(rounds).bare_batch.rows_per_s == pytest.approx(1e6)


def test_timed_calls_take_what_the_call_takes() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    durations, total_ns = time_calls(call, 0.01)
    assert calls == len(durations) + 200, "after the warm-up every call is timed"
    assert total_ns >= 10_000_000
    assert sum(durations) < total_ns


def test_a_pause_lies_between_two_calls() -> None:
    begun_ns: list[int] = []
    durations, _ = time_calls(lambda: begun_ns.append(time.monotonic_ns()), 0.02, pause_ns=100_000)
    assert 1 < len(durations) <= 201
    assert min(np.diff(begun_ns[-len(durations) :])) >= 100_000


def test_a_call_follows_each_other_row_outside_of_its_duration() -> None:
    order: list[str] = []

    def before() -> None:
        order.append("before")
        time.sleep(0.001)

    durations, _ = time_calls(lambda: order.append("call"), 0.01, before=before)
    assert set(order[::2]) == {"before"}
    assert set(order[1::2]) == {"call"}
    assert np.median(durations) < 500_000


def test_the_bare_call_gets_other_rows_that_its_model_takes(tmp_path: Path) -> None:
    backend = open_backend(network(tmp_path), "onnxruntime", 3)
    following = other_rows(backend, 2)
    seen = set()
    for _ in range(50):
        following()
        assert set(backend.inputs[:2, :3].ravel()) <= {0, 1}, "integers and a bool"
        seen.add(backend.inputs[:2].tobytes())
    assert len(seen) == 50
    backend.close()


def test_the_timing_process_answers_for_the_backend(models: Any) -> None:
    with BareBackend(str(models.mlp()), "onnxruntime", 4, None) as backend:
        assert backend.batch_rows_max == 4
        for rows in (1, 4):
            found = backend.measure(rows, 0.02)
            assert found.rows == rows
            assert found.calls == int(found.counts.sum()) > 0
            assert found.total_ns >= 20_000_000
            assert found.rows_per_s == pytest.approx(rows * found.calls * 1e9 / found.total_ns)


def test_a_backend_that_does_not_open_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match=r"absent\.onnx"):
        BareBackend(str(tmp_path / "absent.onnx"), "onnxruntime", 4, None)


@pytest.mark.parametrize("transport", list(Transport))
def test_a_round_measures_echo_backend_and_daemon_in_turn(
    programs: NativePrograms, transport: Transport
) -> None:
    order: list[str] = []
    pauses_ns: list[int] = []

    class FakeBackend:
        batch_rows_max = 8

        def measure(self, rows: int, seconds: float, pause_ns: int = 0) -> BareCalls:
            order.append(f"bare {rows} {seconds}")
            pauses_ns.append(pause_ns)
            return bare(6.0, rows)

    def run_sigd() -> Measurement:
        order.append("sigd")
        return measured(14.0)

    hello = Hello(4, 3, transport, ring_slots=8)
    plan = LoadPlan("/nowhere", hello, random_frames(4, 0, 10), 3, requests=200, connections=2, in_flight=4)
    backend: Any = FakeBackend()
    found = floor.run_round(plan, NativeLoad(programs), programs, backend, None, 0.5, run_sigd)
    assert order == ["bare 1 0.5", "bare 8 0.5", "sigd"]
    echo_p50_ns = histogram.percentiles_ns(found.echo.counts.corrected, [50.0])[0]
    assert pauses_ns == [echo_p50_ns, 0], (
        "one row as often as a request could come; rows a second without a pause"
    )
    assert found.echo.received == 200
    assert found.echo.violation is None
    assert found.echo.counts.corrected.sum() == 200
    welcome = Welcome.decode(found.echo.welcome[HEADER_BYTES:])
    assert welcome.transport == transport, "the floor is of the transport that is measured"
    # What a daemon would grant: the strides are the frames' lengths, rounded up to 64.
    rings = (8, 64, 128) if transport is Transport.SHARED_MEMORY else (0, 0, 0)
    assert (welcome.ring_slots, welcome.request_stride, welcome.response_stride) == rings
