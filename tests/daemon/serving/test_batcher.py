"""Who is in the next batch, and what becomes of it where a client leaves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.daemon.config.limits import FEW_ROWS
from sigd.daemon.serving.fast_path import QUICK_RUN_NS_MAX
from sigd.wire.status import GoodbyeCode, Status

if TYPE_CHECKING:
    from tests.daemon.conftest import Answer, Rig

NAN_OUTPUT = -7.0
INF_OUTPUT = -8.0
MS = 1_000_000


def nan_free(answer: Answer) -> tuple[object, ...]:
    """What must be equal between two ways to the same answer; NaN is not equal to itself."""
    outputs = tuple("NaN" if math.isnan(value) else value for value in answer.outputs)
    return answer.sequence, answer.client_time_ns, answer.instrument_id, answer.status, outputs


# -- the short way

features_of_any_kind = st.lists(
    st.one_of(
        st.floats(width=32),
        st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -3e38, 1e-42, NAN_OUTPUT, INF_OUTPUT]),
    ),
    min_size=4,
    max_size=4,
)


@pytest.mark.parametrize(
    ("synchronous", "looks"), [(True, None), (False, 1), (False, 3), (False, None)], ids=str
)
@given(
    asked=st.lists(
        st.tuples(
            features_of_any_kind,
            st.sampled_from([0, 0, 0, -1, 0.5, 2]),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**64 - 1),
            st.sampled_from([0, MS]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_the_short_way_gives_the_same_answers_as_the_batch_path(
    make_rig: type[Rig],
    synchronous: bool,
    looks: int | None,
    asked: list[tuple[list[float], float, int, int, int]],
) -> None:
    """Also where a device takes longer than it is waited for."""
    short, full = make_rig(synchronous=synchronous), make_rig(synchronous=True)
    short.backend.looks = looks
    for rig in (short, full):
        client = rig.connect()
        client.say(rig.request(0))
        rig.run()
        for sequence, (features, deadline_ms, instrument_id, client_time_ns, run_ns) in enumerate(asked, 1):
            rig.clock.now_ns += 10 * MS
            # Late and spoilt at once may be told as either.
            rig.backend.run_ns = 0 if features[2] in (NAN_OUTPUT, INF_OUTPUT) else run_ns
            deadline_ns = rig.clock.now_ns + int(deadline_ms * MS) if deadline_ms else 0
            if rig is full:
                rig.batcher.close_fast_path()
            client.say(
                rig.request(
                    sequence,
                    *features,
                    deadline_ns=deadline_ns,
                    instrument_id=instrument_id,
                    client_time_ns=client_time_ns,
                )
            )
            rig.run()
    first, second = (rig.clients[0].answers() for rig in (short, full))
    assert list(map(nan_free, first)) == list(map(nan_free, second))
    assert short.counters.by_status == full.counters.by_status
    assert short.batcher.pending_rows == full.batcher.pending_rows == 0


def test_the_short_way_waits_for_no_round_and_counts_what_the_batch_path_counts(make_rig: type[Rig]) -> None:
    rig = make_rig()
    rig.backend.run_ns = 5_000
    client = rig.connect()
    client.say(rig.request(1, 1, 2))
    rig.run()
    wakes, (full,) = rig.wakes, client.answers()
    client.say(rig.request(2, 3, 4))
    (short,) = client.answers()
    assert rig.wakes == wakes, "answered without a round of the loop"
    assert short.outputs == (3.0, 4.0)
    assert (short.infer_ns, short.batch_rows) == (full.infer_ns, full.batch_rows) == (5_000, 1)
    assert short.send_time_ns - short.receive_time_ns == full.send_time_ns - full.receive_time_ns == 5_000
    assert rig.counters.by_status[Status.OK] == 2
    assert rig.counters.batches_by_rows[1] == 2
    for counts in (rig.counters.total, rig.counters.model):
        assert counts.sparse() == [(5120, 2)]
    assert rig.counters.queue.sparse() == [(128, 2)]
    assert rig.batcher.last_batch_ns == rig.clock.now_ns


def test_fast_path_is_left_as_soon_as_another_client_talks(make_rig: type[Rig]) -> None:
    """Where a run is long enough for a batch to be worth its price."""
    rig = make_rig()
    rig.backend.run_ns = QUICK_RUN_NS_MAX + 1
    first, second = rig.connect(), rig.connect()
    first.say(rig.request(1))
    rig.run()
    first.say(rig.request(2))
    assert len(first.answers()) == 2
    second.say(rig.request(1))
    first.say(rig.request(3))
    assert first.answers() == second.answers() == []
    rig.run()
    assert (len(first.answers()), len(second.answers())) == (1, 1)
    assert len(rig.backend.batches[-1]) == 2, "they share a batch"
    first.say(rig.request(4))
    assert first.answers() == [], "two talked last"


def test_the_short_way_is_not_for_a_client_that_was_told_to_go(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = rig.connect()
    client.say(rig.request(1))
    rig.run()
    client.session.drain(GoodbyeCode.DRAINING)
    for sequence in (2, 3, 4):
        client.say(rig.request(sequence))
        rig.run()
    _, _, *refused = client.received()
    assert [answer.status for answer in refused] == [Status.DRAINING] * 3  # type: ignore[union-attr]
    assert rig.backend.rows_run == 1


def test_the_short_way_ends_where_the_loop_goes_to_sleep(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = rig.connect()
    client.say(rig.request(1))
    rig.run()
    rig.batcher.close_fast_path()
    wakes = rig.wakes
    client.say(rig.request(2))
    assert rig.wakes == wakes + 1, "so that the ticker spins again"
    rig.run()
    client.say(rig.request(3))
    assert len(client.answers()) == 3


def test_a_batch_that_takes_longer_than_its_field_holds(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = rig.connect()
    client.say(rig.request(0))
    rig.run()
    rig.backend.run_ns = 6_000_000_000
    client.say(rig.request(1, 5, 6))
    rig.run()
    _, slow = client.answers()
    assert (slow.status, slow.outputs, slow.infer_ns) == (Status.OK, (5.0, 6.0), 2**32 - 1)


# -- order and filling


def test_what_arrived_while_a_batch_ran_is_the_next_one(make_rig: type[Rig]) -> None:
    rig = make_rig(synchronous=False)
    first, second = rig.connect(), rig.connect()
    first.say(rig.request(1, 1))
    rig.batcher.poll()
    first.say(rig.requests([2, 3]))
    second.say(rig.requests([1, 2]))
    assert rig.batcher.poll(), "the device works"
    assert len(rig.backend.batches) == 1
    rig.backend.finished = True
    rig.batcher.poll()
    assert [answer.sequence for answer in first.answers()] == [1]
    assert len(rig.backend.batches[1]) == 4
    rig.run()
    assert [(answer.sequence, answer.batch_rows) for answer in first.answers()] == [(2, 4), (3, 4)]
    assert [(answer.sequence, answer.outputs[0]) for answer in second.answers()] == [(1, 1.0), (2, 2.0)]


def test_a_batch_is_never_larger_than_the_backend_allows(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.requests(range(30)))
    rig.run()
    assert list(map(len, rig.backend.batches)) == [8, 8, 8, 6]
    assert [answer.sequence for answer in client.answers()] == list(range(30))
    assert rig.counters.batches_by_rows[8] == 3
    assert rig.counters.batches_by_rows[6] == 1


@pytest.mark.parametrize("light_clients", [1, 3, 10])
def test_a_heavy_client_leaves_the_others_their_part(make_rig: type[Rig], light_clients: int) -> None:
    rig = make_rig(batch_rows_max=64)
    heavy = rig.connect()
    light = [rig.connect() for _ in range(light_clients)]
    heavy.say(rig.requests(range(256)))
    for client in light:
        client.say(rig.request(1))
    sessions_a_batch = 64 // FEW_ROWS
    for _ in range(-(-(1 + light_clients) // sessions_a_batch)):
        rig.batcher.poll()
    assert [len(client.answers()) for client in light] == [1] * light_clients
    assert len(heavy.answers()) < 256


def test_light_client_waits_for_at_most_a_batch_of_each_of_a_hundred_heavy_ones(
    make_rig: type[Rig],
) -> None:
    rig = make_rig(batch_rows_max=64, rows_pending_max=1 << 20)
    heavy = [rig.connect() for _ in range(100)]
    for client in heavy:
        client.say(rig.requests(range(256)))
    light = rig.connect()
    light.say(rig.request(7))
    batches = 0
    while not light.answers():
        rig.batcher.poll()
        batches += 1
        assert batches <= len(heavy) + 1
        for client in heavy:
            client.say(rig.requests(range(256 - client.session.inbox.rows)))
    rows = sum(map(len, rig.backend.batches))
    assert rows >= 64 * (batches - 1), "and the batches were full"


def test_heavy_clients_share_evenly(make_rig: type[Rig]) -> None:
    rig = make_rig(batch_rows_max=64)
    clients = [rig.connect() for _ in range(3)]
    for client in clients:
        client.say(rig.requests(range(200)))
    for _ in range(3):
        rig.batcher.poll()
    counts = [len(client.answers()) for client in clients]
    assert counts == [64, 64, 64], "a batch each, in turn"


def test_linger_waits_for_company_and_no_longer(make_rig: type[Rig]) -> None:
    rig = make_rig(linger_ns=50_000)
    first, second = rig.connect(), rig.connect()
    first.say(rig.request(1))
    assert rig.batcher.poll(), "it waits"
    rig.clock.now_ns += 49_000
    second.say(rig.request(1))
    rig.batcher.poll()
    assert rig.backend.batches == []
    rig.clock.now_ns += 1_000
    rig.batcher.poll()
    assert list(map(len, rig.backend.batches)) == [2]
    first.say(rig.requests(range(8)))
    rig.batcher.poll()
    assert list(map(len, rig.backend.batches)) == [2, 8], "a full batch does not wait"
    assert not rig.batcher.poll()


# -- endings in the middle of it
# -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["lose", "close", "end"])
def test_a_session_that_ends_while_its_rows_run(make_rig: type[Rig], ending: str) -> None:
    rig = make_rig(synchronous=False)
    leaver, stayer = rig.connect(), rig.connect()
    leaver.say(rig.requests(range(4)))
    stayer.say(rig.requests(range(4)))
    rig.batcher.poll()
    leaver.say(rig.requests(range(4, 6)))
    if ending == "close":
        leaver.session.close()
    else:
        getattr(leaver, ending)()
    rig.run()
    assert stayer.statuses() == [(n, Status.OK) for n in range(4)]
    assert len(leaver.answers()) == (6 if ending == "end" else 0)
    assert rig.batcher.pending_rows == 0
    assert rig.batcher.idle


def test_a_session_that_ends_while_it_waits(rig: Rig) -> None:
    leaver, stayer = rig.connect(), rig.connect()
    leaver.say(rig.requests(range(3)))
    stayer.say(rig.requests(range(3)))
    leaver.lose()
    assert rig.batcher.pending_rows == 3
    rig.run()
    assert rig.backend.rows_run == 3
    assert len(stayer.answers()) == 3
