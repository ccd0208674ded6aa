"""What happened between two answers: only what is new, of the same daemon and the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sigd.daemon.admin.messages import LatencyStatus
from sigd.daemon.recording.status import RecorderStatus
from sigd.daemon.serving.counters import LatencyCounts
from sigd.daemon.top.interval import between, busiest, share_of_model
from sigd.daemon.transport.lane_status import LaneStatus

if TYPE_CHECKING:
    from tests.daemon.top.conftest import MakeModel, MakeStatus


def latencies(*durations_ns: int) -> LatencyStatus:
    counts = LatencyCounts()
    for duration_ns in durations_ns:
        counts.add(duration_ns)
    return LatencyStatus(counts.sparse(), counts.max_ns)


def test_rates_and_percentiles_are_of_the_interval_alone(
    make_status: MakeStatus, make_model: MakeModel
) -> None:
    slow = [900_000] * 50
    fast = [10_000] * 98 + [50_000] * 2
    before = make_status(
        models=[make_model(answers={"OK": 50, "BUSY": 7}, batches_by_rows={1: 50}, total=latencies(*slow))]
    )
    after = make_status(
        2.0,
        models=[
            make_model(
                answers={"OK": 150, "BUSY": 7, "EXPIRED": 20},
                batches_by_rows={1: 70, 4: 20},
                total=latencies(*slow, *fast),
                pending_rows=3,
                waiting_rows=2,
            )
        ],
    )
    (model,) = between(before, after).models
    assert model.requests_a_second == 60
    assert model.answers == {"OK": 100, "EXPIRED": 20}
    assert model.batches_a_second == 20
    assert model.rows_a_batch == 2.5
    assert (model.in_flight, model.waiting) == (3, 2)
    total = model.total
    assert total.count == 100
    assert (total.p50_us, total.p90_us) == (10.112, 10.112)
    assert total.p99_us == total.max_us == 50.048
    assert total.mean_us == pytest.approx(np.mean(fast) / 1000, abs=0.064)
    assert model.queue.count == 0
    assert model.queue.p99_us == 0


def test_the_longest_is_known_where_it_is_the_longest_of_all(
    make_status: MakeStatus, make_model: MakeModel
) -> None:
    after = make_status(1.0, models=[make_model(total=latencies(5_000, 2_000_123))])
    (model,) = between(make_status(), after).models
    assert model.total.max_us == 2_000.123


def test_of_a_daemon_that_was_not_seen_before_everything_is_new(make_status: MakeStatus) -> None:
    interval = between(None, make_status(connections_accepted=4))
    assert interval.seconds == 10
    assert not interval.restarted
    assert interval.accepted == 4
    assert interval.cpu == 0.5


@pytest.mark.parametrize(("pid", "seconds"), [(101, 5.0), (100, -9.0)])
def test_another_daemon_in_its_place(
    make_status: MakeStatus, make_model: MakeModel, pid: int, seconds: float
) -> None:
    before = make_status(models=[make_model(answers={"OK": 5000})], connections_accepted=9)
    after = make_status(seconds, pid=pid, models=[make_model(answers={"OK": 30})], connections_accepted=2)
    interval = between(before, after)
    assert interval.restarted
    assert interval.seconds == 10 + seconds
    assert interval.accepted == 2
    assert interval.models[0].answers == {"OK": 30}
    assert not between(after, after).restarted


def test_a_model_that_is_new_under_an_old_name(make_status: MakeStatus, make_model: MakeModel) -> None:
    before = make_status(models=[make_model(answers={"OK": 100}, total=latencies(*[900_000] * 100))])
    after = make_status(1.0, models=[make_model(answers={"OK": 9}, total=latencies(*[5_000] * 9))])
    (model,) = between(before, after).models
    assert model.answers == {"OK": 9}
    assert model.total.count == 9


def test_a_swap_goes_on_where_the_last_generation_was(make_status: MakeStatus, make_model: MakeModel) -> None:
    before = make_status(models=[make_model(answers={"OK": 100})])
    after = make_status(1.0, models=[make_model(answers={"OK": 130}, generation=2)])
    assert between(before, after).models[0].answers == {"OK": 30}


def test_models_that_come_and_go(make_status: MakeStatus, make_model: MakeModel) -> None:
    one, other = make_model(name="one"), make_model(name="other", answers={"OK": 7})
    assert [model.name for model in between(make_status(models=[one, other]), make_status(1.0)).models] == [
        "lob"
    ]
    models = between(make_status(models=[one]), make_status(1.0, models=[one, other])).models
    assert [model.answers for model in models] == [{}, {"OK": 7}]
    assert [model.name for model in busiest(models)] == ["other", "one"]


def test_clients_and_the_loop(make_status: MakeStatus) -> None:
    before = make_status(rejects={"MALFORMED_FRAME": 2}, slow_readers=1)
    after = make_status(
        2.0,
        clients=["engine", "engine", "quant"],
        rejects={"MALFORMED_FRAME": 2, "UNKNOWN_MODEL": 3},
        slow_readers=2,
        loop={
            "stalls": 3,
            "stalled_ns": 4_500_000,
            "cpu_s": 6.5,
            "runnable_s": 0.6,
            "involuntary_switches": 8,
        },
    )
    interval = between(before, after)
    assert interval.clients == {"engine": 2, "quant": 1}
    assert interval.rejects == {"UNKNOWN_MODEL": 3}
    assert interval.slow_readers == 1
    assert (interval.stalls, interval.stalled_ms) == (3, 4.5)
    assert interval.involuntary_switches == 8
    assert interval.cpu == 0.75
    assert interval.waited == pytest.approx(0.05)
    silent = make_status(3.0, loop={"runnable_s": None})
    assert between(after, silent).waited is None


def test_lanes(make_status: MakeStatus) -> None:
    def lane(core: int, requests: int, **changed: Any) -> LaneStatus:
        told: dict[str, Any] = {"sessions": 1, "lent": 1, "handed_over": {}, "stalled": False} | changed
        return LaneStatus(core=core, requests=requests, **told)

    before = make_status(lanes=[lane(3, 100, handed_over={"features": 2, "ring": 1})])
    after = make_status(
        2.0,
        lanes=[lane(3, 500, handed_over={"features": 7, "ring": 1}), lane(5, 50, stalled=True)],
    )
    first, second = between(before, after).lanes
    assert (first.core, first.requests_a_second, first.handed_over) == (3, 200, {"features": 5})
    assert (second.core, second.requests_a_second, second.stalled) == (5, 25, True)
    assert between(None, make_status()).lanes == []


def test_what_is_recorded(make_status: MakeStatus) -> None:
    def recorder(requests: int, dropped: int, why: str = "") -> RecorderStatus:
        return RecorderStatus(
            recording="/r",
            requests=requests,
            dropped=dropped,
            written_bytes=0,
            stored_bytes=0,
            paused_because=why,
        )

    assert between(None, make_status()).recorded_a_second is None
    before = make_status(recorder=recorder(100, 5))
    interval = between(before, make_status(2.0, recorder=recorder(300, 7, "No space left on device")))
    assert (interval.recorded_a_second, interval.dropped) == (100, 2)
    assert interval.paused_because == "No space left on device"
    assert between(make_status(), make_status(1.0, recorder=recorder(3, 0))).recorded_a_second == 3


def test_where_the_time_goes(make_status: MakeStatus, make_model: MakeModel) -> None:
    model = make_model(total=latencies(10_048), queue=latencies(4_032), infer=latencies(6_016))
    (interval,) = between(None, make_status(models=[model])).models
    assert share_of_model(interval) == pytest.approx(0.6, abs=0.01)
    (nothing,) = between(None, make_status()).models
    assert share_of_model(nothing) == 0
