"""Both load generators against a peer that keeps the contract, and against one that breaks it, in every
way."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sigd.bench import histogram
from sigd.bench.errors import PeerFailed
from sigd.bench.load import schedule
from sigd.bench.load.contract import LoadGenerator, LoadPlan, Measurement, ViolationKind
from sigd.bench.load.native import NativeLoad
from sigd.bench.load.python import PythonLoad, latency_counts
from sigd.bench.load.requests import encode, random_frames
from sigd.wire.messages import Hello
from sigd.wire.status import Transport

StartPeer = Callable[..., Any]


PlanFor = Callable[..., LoadPlan]


@pytest.fixture(params=["cpp", "cpp over shared memory", "python", "python over shared memory"])
def way(request: pytest.FixtureRequest) -> str:
    """Which generator, and over what."""
    return str(request.param)


@pytest.fixture
def generator(way: str, request: pytest.FixtureRequest) -> LoadGenerator:
    if way.startswith("python"):
        return PythonLoad()
    return NativeLoad(request.getfixturevalue("programs"))


@pytest.fixture
def plan_for(way: str) -> PlanFor:
    """A plan for the peer at that path, by the way that is tested."""

    def plan_for(path: str, frames: Any = None, **options: Any) -> LoadPlan:
        options.setdefault("requests", 300)
        options.setdefault("stall_ns", 300_000_000)
        transport = Transport.SHARED_MEMORY if "shared memory" in way else Transport.STREAM
        if frames is None:
            frames = random_frames(4, seed=1, rows=100)
        return LoadPlan(path, Hello(4, 3, transport), frames, 3, **options)

    return plan_for


def measure(generator: LoadGenerator, plan: LoadPlan) -> Measurement:
    announced: list[int] = []
    measurement = generator.run(plan, lambda: announced.append(1))
    assert announced in ([1], [])
    return measurement


@pytest.mark.parametrize(("connections", "in_flight"), [(1, 1), (3, 8)])
def test_closed_loop_measures_exactly_what_was_asked(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor, connections: int, in_flight: int
) -> None:
    peer = start_peer()
    plan = plan_for(peer.path, connections=connections, in_flight=in_flight, warmup_ns=20_000_000)
    measurement = measure(generator, plan)
    assert measurement.violation is None
    assert (measurement.requests, measurement.sent, measurement.received, measurement.lost) == (
        300,
        300,
        300,
        0,
    )
    assert measurement.statuses == (300, *[0] * 8)
    assert len(measurement.samples) == 300
    assert len(peer.requests) > 300, "the warm-up was sent as well"
    assert set(measurement.samples["connection"]) <= set(range(connections))
    assert measurement.welcome[96:100] == b"test"
    assert measurement.batch_rows_sum == 300


def test_what_is_counted_is_what_was_sampled(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    measurement = measure(generator, plan_for(start_peer().path, connections=2, in_flight=4))
    expected = latency_counts(measurement.samples)
    for name in ("corrected", "uncorrected", "queue", "model", "rest"):
        np.testing.assert_array_equal(
            getattr(measurement.counts, name), getattr(expected, name), err_msg=name
        )
    latency_ns = measurement.samples["received_ns"] - measurement.samples["intended_ns"]
    slowest_ns = measurement.slowest["received_ns"] - measurement.slowest["intended_ns"]
    assert slowest_ns[0] == latency_ns.max()
    # The slowest of each read, and of those the slowest sixteen.
    reads = measurement.samples["received_ns"]
    of_reads_ns = np.array([latency_ns[reads == read].max() for read in np.unique(reads)])
    np.testing.assert_array_equal(slowest_ns, np.sort(of_reads_ns)[::-1][:16])


def test_samples_are_bounded_and_counts_are_not(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    measurement = measure(generator, plan_for(start_peer().path, in_flight=16, samples_max=20))
    assert len(measurement.samples) == 20
    assert measurement.received == 300
    assert int(measurement.counts.corrected.sum()) == 300
    # A uniform sample reaches beyond the beginning of the run.
    assert measurement.samples["sent_ns"].max() > np.sort(measurement.samples["sent_ns"])[0]


def test_open_loop_sends_the_whole_schedule_over_all_connections(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    peer = start_peer()
    offsets = schedule.with_warmup(schedule.poisson(2000, 0.2, seed=7), 50_000_000)
    plan = plan_for(peer.path, requests=0, intended_ns=offsets, connections=2, in_flight=64)
    measurement = measure(generator, plan)
    measured = int((offsets >= 0).sum())
    assert measurement.violation is None
    assert (measurement.requests, measurement.sent, measurement.received) == (measured, measured, measured)
    assert len(peer.requests) == len(offsets)
    samples = np.sort(measurement.samples, order="intended_ns")
    gaps_ns = np.diff(samples["intended_ns"])
    np.testing.assert_array_equal(gaps_ns, np.diff(offsets[offsets >= 0]))
    assert (samples["sent_ns"] >= samples["intended_ns"]).all(), "nothing is sent before its time"
    assert measurement.sent_span_ns >= measurement.intended_span_ns - int(offsets[offsets >= 0][0])


def test_measured_requests_begin_with_the_first_frame(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    peer = start_peer()
    instruments = np.arange(100, 140, dtype=np.uint32)
    frames = encode(np.zeros((40, 4), dtype=np.float32), instruments)
    offsets = schedule.with_warmup(schedule.constant(1000, 0.04), 15_000_000)
    measure(generator, plan_for(peer.path, frames, requests=0, intended_ns=offsets, in_flight=8))
    sent = [instrument for _, instrument in peer.requests]
    assert sent[-40:] == instruments.tolist()


def test_a_stalled_peer_shows_in_the_corrected_latencies(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    peer = start_peer(fault="stall", at=100, stall_s=0.1)
    plan = plan_for(peer.path, requests=0, intended_ns=schedule.constant(1000, 0.4), in_flight=1)
    measurement = measure(generator, plan)
    assert measurement.received == 400
    corrected, uncorrected = (
        histogram.percentiles_ns(counts, [80])[0]
        for counts in (measurement.counts.corrected, measurement.counts.uncorrected)
    )
    # One request in 400 waited for the peer, but a hundred were due meanwhile and could not go.
    assert corrected > 10_000_000
    assert uncorrected < corrected / 2
    assert measurement.late_sends >= 90
    assert measurement.late_worst_ns > 80_000_000


def test_peer_that_falls_behind_is_asked_no_more(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    peer = start_peer(fault="stall", at=100, stall_s=0.1)
    plan = plan_for(
        peer.path,
        requests=0,
        intended_ns=schedule.constant(1000, 0.4),
        connections=2,
        in_flight=1,
        behind_ns=50_000_000,
    )
    measurement = measure(generator, plan)
    assert measurement.requests == 400
    assert measurement.sent < 300, "what was due in the stall and after it is not sent"
    assert (measurement.received, measurement.lost) == (measurement.sent, 0)


BREACHES = {
    "wrong_sequence": ViolationKind.SEQUENCE,
    "lost": ViolationKind.SEQUENCE,
    "client_time": ViolationKind.CLIENT_TIME,
    "instrument": ViolationKind.INSTRUMENT,
    "unknown_status": ViolationKind.STATUS,
    "nan_with_ok": ViolationKind.OUTPUTS,
    "infinite_with_ok": ViolationKind.OUTPUTS,
    "finite_with_busy": ViolationKind.OUTPUTS,
    "infer_too_long": ViolationKind.STAMPS,
    "stamps_backwards": ViolationKind.STAMPS,
    "stamps_too_long": ViolationKind.STAMPS,
    "short": ViolationKind.HEADER,
    "long": ViolationKind.HEADER,
    "foreign_template": ViolationKind.HEADER,
    "foreign_schema": ViolationKind.HEADER,
    "reject": ViolationKind.REJECTED,
    "close_early": ViolationKind.CLOSED_EARLY,
}


@pytest.mark.parametrize("fault", BREACHES)
def test_a_breach_of_the_contract_ends_the_run_and_is_named(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor, fault: str
) -> None:
    peer = start_peer(fault=fault, at=50)
    measurement = measure(generator, plan_for(peer.path, in_flight=4))
    assert measurement.violation is not None
    assert measurement.violation.kind is BREACHES[fault]
    assert measurement.violation.connection == 0
    if fault == "close_early":
        # The last answers may still be on their way when a send finds the other end closed.
        assert measurement.received <= 50
    else:
        assert measurement.received == 50
    assert measurement.lost > 0


class TestOverSharedMemory:
    """What can only go wrong there."""

    @pytest.fixture(params=["cpp over shared memory", "python over shared memory"])
    def way(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize(
        ("fault", "kind", "words"),
        [
            ("head_back", ViolationKind.COUNTER, "ran backwards|head at"),
            ("head_ahead", ViolationKind.COUNTER, "further ahead|head at"),
            (
                "heartbeat_in_the_ring",
                ViolationKind.HEADER,
                "another message than an answer|template 4 in a ring",
            ),
            ("longer_than_its_slot", ViolationKind.HEADER, "longer than its slot|136 bytes in a slot of 128"),
            ("answer_beside_the_ring", ViolationKind.HEADER, "an answer beside the ring"),
        ],
    )
    def test_a_breach_of_the_rings_rules_ends_the_run_and_is_named(
        self,
        *,
        generator: LoadGenerator,
        start_peer: StartPeer,
        plan_for: PlanFor,
        fault: str,
        kind: ViolationKind,
        words: str,
    ) -> None:
        # One in flight: when the counter jumps, all that was published before has been taken.
        measurement = measure(
            generator, plan_for(start_peer(fault=fault).path, in_flight=1, stall_ns=5_000_000_000)
        )
        assert measurement.violation is not None
        assert measurement.violation.kind is kind
        assert re.search(words, measurement.violation.text)
        assert measurement.received == 50

    def test_a_region_that_could_shrink_is_no_welcome(
        self, generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
    ) -> None:
        measurement = measure(generator, plan_for(start_peer(fault="unsealed").path))
        assert measurement.violation is not None
        assert measurement.violation.kind is ViolationKind.NO_WELCOME
        assert "sealed" in measurement.violation.text

    def test_more_in_flight_than_slots_is_refused(
        self, generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
    ) -> None:
        with pytest.raises(PeerFailed, match="65 in flight, the ring was granted 64 slots"):
            generator.run(plan_for(start_peer().path, in_flight=65), lambda: None)

    def test_a_ring_is_gone_round_many_times(
        self, generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
    ) -> None:
        peer = start_peer()
        measurement = measure(generator, plan_for(peer.path, requests=2000, connections=2, in_flight=64))
        assert measurement.violation is None
        assert measurement.received == 2000
        assert len({sequence for sequence, _ in peer.requests}) == len(peer.requests) >= 2000


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("reject_hello", ViolationKind.REJECTED, "no such model"),
        ("close_before_welcome", ViolationKind.CLOSED_EARLY, "before its Welcome"),
    ],
)
def test_a_refused_session_is_a_finding(
    generator: LoadGenerator,
    start_peer: StartPeer,
    plan_for: PlanFor,
    fault: str,
    kind: ViolationKind,
    words: str,
) -> None:
    measurement = measure(generator, plan_for(start_peer(fault=fault).path))
    assert measurement.violation is not None
    assert measurement.violation.kind is kind
    assert words in measurement.violation.text
    assert measurement.received == 0


def test_answer_without_a_request_is_found(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    measurement = measure(generator, plan_for(start_peer(fault="twice").path, in_flight=1))
    assert measurement.violation is not None
    assert measurement.violation.kind in (ViolationKind.UNSOLICITED, ViolationKind.SEQUENCE)


def test_replies_that_never_come_are_lost_and_bound_the_run(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    measurement = measure(generator, plan_for(start_peer(fault="silent", at=50).path, in_flight=4))
    assert measurement.violation is None
    assert measurement.received == 50
    assert measurement.lost == 4


@pytest.mark.parametrize("fault", ["heartbeats", "newer_version"])
def test_what_the_contract_allows_is_no_breach(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor, fault: str
) -> None:
    measurement = measure(generator, plan_for(start_peer(fault=fault).path, in_flight=4))
    assert measurement.violation is None
    assert measurement.received == 300


def test_every_answer_is_accounted_for_by_status(
    generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor
) -> None:
    measurement = measure(generator, plan_for(start_peer(fault="busy").path))
    assert measurement.violation is None
    assert measurement.statuses == (270, 0, 30, *[0] * 6)
    assert int(measurement.counts.corrected.sum()) == 270, "latencies are of the requests that got a signal"


def test_socket_without_a_listener(generator: LoadGenerator, tmp_path: Any, plan_for: PlanFor) -> None:
    with pytest.raises(PeerFailed, match=r"absent\.sock"):
        generator.run(plan_for(str(tmp_path / "absent.sock")), lambda: None)


def test_two_runs_add_up(generator: LoadGenerator, start_peer: StartPeer, plan_for: PlanFor) -> None:
    first = measure(generator, plan_for(start_peer().path, requests=100))
    second = measure(generator, plan_for(start_peer(fault="busy").path, requests=50))
    both = first.plus(second)
    assert (both.sent, both.received, both.statuses[:3]) == (150, 150, (145, 0, 5))
    assert int(both.counts.corrected.sum()) == 145
    slowest_ns = both.slowest["received_ns"] - both.slowest["intended_ns"]
    assert len(slowest_ns) == 16
    assert (np.diff(slowest_ns) <= 0).all()
