"""The fast path is taken when it may be, and gives the batch path's answers to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.conftest import Answer

from sigd.daemon.serving.counters import LatencyCounts
from sigd.daemon.serving.fast_path import QUICK_RUN_NS_MAX, SUMMED_OUTPUTS_MAX, WAIT_NS_MAX, finite_check
from sigd.wire.messages import Heartbeat
from sigd.wire.status import GoodbyeCode, Status

if TYPE_CHECKING:
    from tests.daemon.conftest import FakeClient, Rig

pytestmark = pytest.mark.usefixtures("each_fast_path")


def alone(rig: Rig) -> FakeClient:
    """A client that had the last batch to itself."""
    client = rig.connect()
    client.say(rig.request(0))
    rig.run()
    client.received()
    assert rig.batcher.fast_path_owner is client.session
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


def test_long_run_needs_no_other_client(make_rig: type[Rig]) -> None:
    rig = make_rig()
    rig.backend.run_ns = QUICK_RUN_NS_MAX + 1
    client, other = alone(rig), rig.connect()
    other.say(rig.request(1))
    assert not answered_at_once(rig, client, rig.request(2)), "the two shall share a batch"
    rig.run()
    assert rig.counters.batches_by_rows[2] == 1
    assert rig.batcher.fast_path_owner is None


def test_fast_path_of_a_quick_model_is_open_to_every_session(make_rig: type[Rig]) -> None:
    rig = make_rig()
    rig.backend.run_ns = QUICK_RUN_NS_MAX
    client, others = alone(rig), [rig.connect() for _ in range(3)]
    for other in others:
        other.say(rig.request(1, 7))
        rig.run()
    for _ in range(2):
        for one in (client, *others):
            assert answered_at_once(rig, one, rig.request(2, 8))
    assert {answer.outputs[0] for other in others for answer in other.answers()} == {7.0, 8.0}


@pytest.mark.parametrize("why", ["a client waits", "it drains", "the loop rests", "another model is served"])
def test_fast_path_is_open_to_every_session_until(make_rig: type[Rig], why: str) -> None:
    rig = make_rig()
    client, other = alone(rig), rig.connect()
    other.say(rig.request(1))
    rig.run()
    assert answered_at_once(rig, client, rig.request(1))
    if why == "a client waits":
        other.say(rig.requests(range(2, 7)))
    elif why == "it drains":
        client.session.drain(GoodbyeCode.DRAINING)
    elif why == "the loop rests":
        rig.batcher.close_fast_path()
    else:
        rig.swap()
    assert not answered_at_once(rig, client, rig.request(2))
    rig.run()
    assert rig.batcher.pending_rows == 0


def test_it_waits_for_the_whole_request(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = alone(rig)
    frame = rig.request(1, 5)
    assert not answered_at_once(rig, client, frame[:30])
    assert answered_at_once(rig, client, frame[30:])
    assert rig.batcher.pending_rows == 0
    assert [answer.outputs[0] for answer in client.answers()] == [5.0]


@pytest.mark.parametrize("case", ["four requests", "draining", "linger"])
def test_it_is_not_for(make_rig: type[Rig], case: str) -> None:
    rig = make_rig(linger_ns=10**6 if case == "linger" else 0)
    client = rig.connect()
    client.say(rig.request(0))
    rig.clock.now_ns += 10**7
    rig.run()
    frames = rig.request(1)
    if case == "four requests":
        frames = rig.requests([1, 2, 3, 4])
    elif case == "draining":
        client.session.drain(GoodbyeCode.DRAINING)
    assert not answered_at_once(rig, client, frames)
    rig.clock.now_ns += 10**7
    rig.run()
    assert rig.batcher.pending_rows == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_comes_behind_a_few_waits_for_its_end(make_rig: type[Rig], count: int) -> None:
    rig = make_rig()
    client = alone(rig)
    last = rig.request(9, 5)
    assert answered_at_once(rig, client, rig.requests(range(1, 1 + count)) + last[:20])
    assert [answer.sequence for answer in client.answers()] == list(range(1, 1 + count))
    client.say(last[20:] + Heartbeat(7).encode())
    rig.run()
    heard = client.received()
    assert [type(item) for item in heard] == [Answer, Heartbeat]
    assert rig.batcher.pending_rows == 0


@pytest.mark.parametrize("cut", [1, 8, 60])
def test_what_is_refused_behind_what_was_heard_is_whole(make_rig: type[Rig], cut: int) -> None:
    rig = make_rig()
    client = alone(rig)
    bad = rig.request(1, np.nan)
    client.say(Heartbeat(7).encode() + bad[:cut])
    client.say(bad[cut:] + rig.request(2, 5, 6))
    rig.run()
    _, first, second = client.received()
    assert isinstance(first, Answer)
    assert isinstance(second, Answer)
    assert (first.sequence, first.status) == (1, Status.BAD_INPUT)
    assert (second.sequence, second.outputs) == (2, (5.0, 6.0))


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
def test_it_answers_as_the_batch_path_does(features: list[float], **fields_of_request: Any) -> None:
    from tests.daemon.conftest import Rig

    raw = []
    for shortest in (True, False):
        rig = Rig()
        client = alone(rig)
        if not shortest:
            rig.batcher.close_fast_path()
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


@pytest.mark.parametrize("count", [1, SUMMED_OUTPUTS_MAX, SUMMED_OUTPUTS_MAX + 1, 1024])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_one_output_that_is_no_number_is_found_wherever_it_stands(count: int, odd: float) -> None:
    outputs = np.full(count, 3.4e38, np.float32)
    are_finite = finite_check(outputs)
    assert are_finite(), "though their sum is past float32"
    for place in {0, count // 2, count - 1}:
        outputs[place] = odd
        assert not are_finite()
        outputs[place] = 1
    assert are_finite()


# -- a few at once


@pytest.mark.parametrize("count", [2, 3])
def test_a_few_at_once_are_answered_one_after_the_other(make_rig: type[Rig], count: int) -> None:
    rig = make_rig()
    client = alone(rig)
    assert answered_at_once(rig, client, rig.requests(range(1, 1 + count)))
    answers = client.answers()
    assert [(answer.sequence, answer.outputs[0]) for answer in answers] == [
        (n, n) for n in range(1, 1 + count)
    ]
    assert {answer.batch_rows for answer in answers} == {1}
    assert len({answer.receive_time_ns for answer in answers}) == 1
    assert rig.batcher.pending_rows == 0


def test_fast_path_failure_among_a_few_leaves_the_others(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = alone(rig)
    rig.backend.failure = RuntimeError("by chance")
    client.say(rig.requests([1, 2, 3]))
    rig.run()
    assert client.statuses() == [(1, Status.OK), (2, Status.OK), (3, Status.OK)]
    assert rig.batcher.pending_rows == 0


def test_who_leaves_after_the_first_of_a_few_gets_no_more(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = alone(rig)
    sent: list[memoryview] = []

    def send(frame: memoryview) -> None:
        sent.append(frame)
        client.session.close()

    client.session.send_answers = send
    client.session.attach()
    client.say(rig.requests([1, 2, 3]))
    rig.run()
    assert len(sent) == 1
    assert rig.batcher.pending_rows == 0


def test_more_than_a_client_may_have_unanswered_are_told_so_however_quick_they_are(
    make_rig: type[Rig],
) -> None:
    rig = make_rig(in_flight_max=2)
    client = alone(rig)
    client.say(rig.requests([1, 2, 3]))
    rig.run()
    assert [answer.status for answer in client.answers()] == [Status.OK, Status.OK, Status.BUSY]


def test_not_where_a_run_takes_long(make_rig: type[Rig]) -> None:
    rig = make_rig()
    rig.backend.run_ns = QUICK_RUN_NS_MAX + 1
    client = alone(rig)
    assert not answered_at_once(rig, client, rig.requests([1, 2]))
    rig.backend.run_ns = QUICK_RUN_NS_MAX
    rig.run()
    assert [answer.batch_rows for answer in client.answers()] == [2, 2]
    assert answered_at_once(rig, client, rig.requests([3, 4])), "it is quick by now"


def test_not_on_a_device(make_rig: type[Rig]) -> None:
    rig = make_rig(synchronous=False)
    client = alone(rig)
    rig.backend.looks = 1
    assert not answered_at_once(rig, client, rig.requests([1, 2]))
    rig.run()
    assert [answer.batch_rows for answer in client.answers()] == [2, 2]


few_features = st.lists(st.sampled_from([0.0, 1.0, np.nan, np.inf, -3e38]), min_size=3, max_size=3)
few_requests = st.tuples(few_features, st.sampled_from([0, 1, 10**18]), st.integers(1, 2), st.booleans())


@given(asked=st.lists(few_requests, min_size=1, max_size=4), tail_bytes=st.integers(0, 20))
def test_a_few_get_the_answers_of_the_batch_path(
    asked: list[tuple[list[float], int, int, bool]], tail_bytes: int
) -> None:
    """Whichever of them is late, no number, of another version or not all there yet."""
    from tests.daemon.conftest import Rig

    said = []
    for shortest in (True, False):
        rig = Rig()
        client = alone(rig)
        if not shortest:
            rig.batcher.close_fast_path()
        frames = b"".join(
            rig.request(
                number,
                *features,
                deadline_ns=deadline_ns,
                **({"version": 2, "longer_bytes": 8} if newer else {}),
            )
            for number, (features, deadline_ns, _, newer) in enumerate(asked)
        )
        last = rig.request(99, 5)
        client.say(frames + last[:tail_bytes])
        rig.run()
        client.say(last[tail_bytes:])
        rig.run()
        said.append([(answer.sequence, answer.status, repr(answer.outputs)) for answer in client.answers()])
        assert rig.batcher.pending_rows == 0
    assert said[0] == said[1]
    assert len(said[0]) == len(asked) + 1


# -- on a device


def on_a_device(make_rig: type[Rig], looks: int | None = 3) -> tuple[Rig, FakeClient]:
    """A client that is alone, on a device that is done after so many looks."""
    rig = make_rig(synchronous=False)
    client = alone(rig)
    rig.backend.looks = looks
    return rig, client


@pytest.mark.parametrize("looks", [1, 2, 100])
def test_a_device_is_waited_for(make_rig: type[Rig], looks: int) -> None:
    rig, client = on_a_device(make_rig, looks)
    for sequence in range(1, 4):
        assert answered_at_once(rig, client, rig.request(sequence, 7, 8))
    answers = client.answers()
    assert [answer.outputs for answer in answers] == [(7.0, 8.0)] * 3
    assert {answer.infer_ns for answer in answers} == {1000 * (looks - 1)}
    assert len(rig.backend.batches) == 4


def test_a_device_that_takes_long_is_waited_for_by_the_loop(make_rig: type[Rig]) -> None:
    rig, client = on_a_device(make_rig, looks=None)
    assert not answered_at_once(rig, client, rig.request(1, 7, 8))
    other = rig.connect()
    other.say(rig.request(2, 5))
    assert rig.batcher.poll()
    assert len(rig.backend.batches) == 2, "one at a time"
    rig.run()
    (first,), (second,) = client.answers(), other.answers()
    assert (first.outputs, second.outputs[0]) == ((7.0, 8.0), 5.0)
    assert first.infer_ns > WAIT_NS_MAX
    assert len(rig.backend.batches) == 3, "nothing is run twice"
    assert rig.counters.by_status[Status.OK] == 3
    assert rig.batcher.pending_rows == 0


def test_after_a_long_one_they_go_the_batch_path_until_one_is_short(make_rig: type[Rig]) -> None:
    rig, client = on_a_device(make_rig, looks=None)
    client.say(rig.request(1))
    rig.run()
    rig.backend.looks = 3
    assert not answered_at_once(rig, client, rig.request(2))
    rig.run()
    assert answered_at_once(rig, client, rig.request(3))


def test_device_that_fails_once_is_asked_again(make_rig: type[Rig]) -> None:
    rig, client = on_a_device(make_rig)
    rig.backend.failure = RuntimeError("the device stumbled")
    assert not answered_at_once(rig, client, rig.request(1))
    rig.run()
    assert answered_at_once(rig, client, rig.request(2, 7, 8))
    assert client.statuses() == [(1, Status.OK), (2, Status.OK)]


@pytest.mark.parametrize("fails", [False, True])
def test_a_device_that_fails_on_a_long_one(make_rig: type[Rig], fails: bool) -> None:
    rig, client = on_a_device(make_rig, looks=None)
    client.say(rig.request(1))
    rig.backend.failure = RuntimeError("the device stumbled") if fails else None
    rig.run()
    (answer,) = client.answers()
    assert answer.status is (Status.MODEL_ERROR if fails else Status.OK)
    assert rig.batcher.idle


def test_who_leaves_while_a_long_one_runs_is_not_answered(make_rig: type[Rig]) -> None:
    rig, client = on_a_device(make_rig, looks=None)
    client.say(rig.request(1))
    client.session.close()
    assert rig.batcher.poll()
    rig.run()
    assert rig.batcher.idle
    assert rig.batcher.pending_rows == 0


def test_a_swap_waits_for_a_long_one(make_rig: type[Rig]) -> None:
    rig, client = on_a_device(make_rig, looks=None)
    client.say(rig.request(1, 10))
    rig.swap()
    assert not rig.backend.closed
    rig.run()
    client.say(rig.request(2, 10))
    rig.run()
    assert [(answer.model_generation, answer.outputs[0]) for answer in client.answers()] == [
        (1, 10.0),
        (2, 20.0),
    ]


def test_without_room_a_long_one_does_not_run(make_rig: type[Rig]) -> None:
    rig, client = on_a_device(make_rig, looks=None)
    # As where others have asked for more than the daemon takes.
    rig.batcher.pending_rows += 10**6
    client.session.row_statuses.set_newest(1, 1, Status.BUSY)
    client.say(rig.request(1))
    rig.batcher.pending_rows -= 10**6
    rig.run()
    assert [answer.status for answer in client.answers()] == [Status.BUSY]
    assert rig.batcher.idle
    assert rig.batcher.pending_rows == 0
