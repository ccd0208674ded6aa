"""The shortest way is taken when it may be, and gives the full way's answers to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.daemon.counters import LatencyCounts
from sigd.wire.messages import Heartbeat
from sigd.wire.status import GoodbyeCode, Status

if TYPE_CHECKING:
    from tests.daemon.conftest import FakeClient, Rig


def alone(rig: Rig) -> FakeClient:
    """A client that had the last batch to itself."""
    client = rig.connect()
    client.say(rig.request(0))
    rig.run()
    client.received()
    assert rig.batcher.alone is client.session
    return client


def answered_at_once(rig: Rig, client: FakeClient, *frames: bytes) -> bool:
    """Whether the frames are answered before the loop's next round."""
    before = len(client.raw)
    client.say(*frames)
    return len(client.raw) > before


def test_it_is_taken_by_who_had_the_last_batch_to_itself(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = alone(rig)
    for sequence in range(1, 4):
        assert answered_at_once(rig, client, rig.request(sequence, 7, 8))
    assert [answer.outputs for answer in client.answers()] == [(7.0, 8.0)] * 3
    assert rig.counters.by_status[Status.OK] == 4
    assert rig.counters.batches_by_rows[1] == 4
    assert sum(count for _, count in rig.counters.total.sparse()) == 4


def test_it_is_counted_to_the_bin_whatever_it_took(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = alone(rig)
    expected = {name: LatencyCounts() for name in ("total", "queue", "model")}
    for counts in expected.values():
        counts.add(0)
    for queue_ns, infer_ns in (
        (0, 900_000),
        (500, 6_000),
        (1_000, 70_000),
        (127, 0),
        (128, 127),
        (40_000, 30_000),
    ):
        rig.backend.run_ns = infer_ns
        frame = rig.request(1)
        client.session.writable()[: len(frame)] = frame
        client.session.arrived(len(frame), rig.clock() - queue_ns)
        for name, took_ns in (("total", queue_ns + infer_ns), ("queue", queue_ns), ("model", infer_ns)):
            expected[name].add(took_ns)
    assert len(client.answers()) == 6
    for name, counts in expected.items():
        assert getattr(rig.counters, name).sparse() == counts.sparse(), name
    assert rig.counters.total.max_ns == 900_000
    assert rig.counters.by_status[Status.OK] == rig.counters.batches_by_rows[1] == 7


def test_it_needs_nobody_else(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client, other = alone(rig), rig.connect()
    other.say(rig.request(1))
    assert not answered_at_once(rig, client, rig.request(2)), "the two shall share a batch"
    rig.run()
    assert rig.counters.batches_by_rows[2] == 1
    assert rig.batcher.alone is None


def test_it_waits_for_the_whole_request(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = alone(rig)
    frame = rig.request(1, 5)
    assert not answered_at_once(rig, client, frame[:30])
    assert not answered_at_once(rig, client, frame[30:]), "bytes that waited go the full way"
    rig.run()
    assert [answer.outputs[0] for answer in client.answers()] == [5.0]


@pytest.mark.parametrize("case", ["two requests", "a heartbeat behind", "draining", "asynchronous", "linger"])
def test_it_is_not_for(make_rig: type[Rig], case: str) -> None:
    rig = make_rig(synchronous=case != "asynchronous", linger_ns=10**6 if case == "linger" else 0)
    client = rig.connect()
    client.say(rig.request(0))
    rig.clock.now_ns += 10**7
    rig.run()
    frames = rig.request(1)
    if case == "two requests":
        frames += rig.request(2)
    elif case == "a heartbeat behind":
        frames += Heartbeat(1).encode()
    elif case == "draining":
        client.session.drain(GoodbyeCode.DRAINING)
    assert not answered_at_once(rig, client, frames)
    rig.clock.now_ns += 10**7
    rig.run()
    assert rig.batcher.pending_rows == 0


def test_requests_of_a_newer_version_take_it_once_they_are_what_comes(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = alone(rig)
    newer = rig.request(1, 3, version=2, longer_bytes=16)
    assert not answered_at_once(rig, client, newer)
    rig.run()
    assert answered_at_once(rig, client, newer)
    assert [answer.outputs[0] for answer in client.answers()] == [3.0, 3.0]


numbers = st.floats(width=32, allow_subnormal=False) | st.sampled_from(
    [np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1.6e38, 1.8e38, 0.0, -0.0]
)


@given(
    features=st.lists(numbers, min_size=3, max_size=3),
    deadline_ns=st.sampled_from([0, 1, 10**18]),
    instrument_id=st.integers(0, 2**32 - 1),
    sequence=st.integers(0, 2**64 - 1),
    client_time_ns=st.integers(0, 2**64 - 1),
)
def test_it_answers_as_the_full_way_does(features: list[float], **fields_of_request: Any) -> None:
    from tests.daemon.conftest import Rig

    raw = []
    for shortest in (True, False):
        rig = Rig()
        client = alone(rig)
        if not shortest:
            rig.batcher.rest()
        del client.raw[:]
        client.say(
            rig.request(
                fields_of_request["sequence"],
                *features,
                **{name: value for name, value in fields_of_request.items() if name != "sequence"},
            )
        )
        rig.run()
        raw.append(bytes(client.raw))
        assert len(raw[-1]) > 0
    assert raw[0] == raw[1]
