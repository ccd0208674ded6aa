"""Who is in the next batch, what runs, and who gets which answer."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.daemon import batcher as batcher_module
from sigd.daemon.batcher import FEW_ROWS
from sigd.daemon.screening import screen
from sigd.daemon.session import EXCESS_ROWS
from sigd.models.errors import BackendClosed, BackendFailed
from sigd.wire.messages import Heartbeat, Hello
from sigd.wire.status import GoodbyeCode, HelloFlag, Status

if TYPE_CHECKING:
    from tests.daemon.conftest import Answer, Rig

NAN_OUTPUT = -7.0
INF_OUTPUT = -8.0
MS = 1_000_000


def nan_free(answer: Answer) -> tuple[object, ...]:
    """What must be equal between two ways to the same answer; NaN is not equal to itself."""
    outputs = tuple("NaN" if math.isnan(value) else value for value in answer.outputs)
    return answer.sequence, answer.client_time_ns, answer.instrument_id, answer.status, outputs


# -- the short way -------------------------------------------------------------------------------------------------

features_of_any_kind = st.lists(
    st.one_of(
        st.floats(width=32),
        st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -3e38, 1e-42, NAN_OUTPUT, INF_OUTPUT]),
    ),
    min_size=4,
    max_size=4,
)


@given(
    st.lists(
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
def test_the_short_way_gives_the_same_answers_as_the_full_way(
    make_rig: type[Rig], asked: list[tuple[list[float], float, int, int, int]]
) -> None:
    """An asynchronous backend never takes the short way."""
    short, full = make_rig(synchronous=True), make_rig(synchronous=False)
    for rig in (short, full):
        client = rig.connect()
        client.say(rig.request(0))
        rig.run()
        for sequence, (features, deadline_ms, instrument_id, client_time_ns, run_ns) in enumerate(asked, 1):
            rig.clock.now_ns += 10 * MS
            # Late and spoilt at once may be told as either.
            rig.backend.run_ns = 0 if features[2] in (NAN_OUTPUT, INF_OUTPUT) else run_ns
            deadline_ns = rig.clock.now_ns + int(deadline_ms * MS) if deadline_ms else 0
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


def test_the_short_way_waits_for_no_round_and_counts_what_the_full_way_counts(make_rig: type[Rig]) -> None:
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


def test_the_short_way_is_left_as_soon_as_somebody_else_talks(make_rig: type[Rig]) -> None:
    rig = make_rig()
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
    rig.batcher.rest()
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


# -- order and filling ---------------------------------------------------------------------------------------------


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
    assert list(map(len, rig.backend.batches)) == [2, 8], "a full batch waits for nobody"
    assert not rig.batcher.poll()


# -- who does not run ----------------------------------------------------------------------------------------------


def test_a_deadline_that_has_passed_does_not_run(rig: Rig) -> None:
    now_ns = rig.clock.now_ns
    client = rig.connect()
    client.say(
        rig.request(1, 1, deadline_ns=now_ns - 1)
        + rig.request(2, 2, deadline_ns=now_ns)
        + rig.request(3, 3)
        + rig.request(4, 4, deadline_ns=2**64 - 1)
    )
    rig.run()
    answers = client.answers()
    assert [(answer.sequence, answer.status.name) for answer in answers] == [
        (1, "EXPIRED"),
        (2, "OK"),
        (3, "OK"),
        (4, "OK"),
    ]
    assert np.array_equal(rig.backend.batches[0][:, 0], [2, 3, 4])
    assert all(map(math.isnan, answers[0].outputs))
    assert (answers[0].infer_ns, answers[0].batch_rows) == (0, 0)
    assert [answer.batch_rows for answer in answers[1:]] == [3, 3, 3]


def test_a_deadline_that_passes_while_the_model_runs_is_expired(rig: Rig) -> None:
    rig.backend.run_ns = MS
    client = rig.connect()
    now_ns = rig.clock.now_ns
    client.say(rig.request(1, 1, deadline_ns=now_ns + MS - 1) + rig.request(2, 2, deadline_ns=now_ns + MS))
    rig.run()
    late, good = client.answers()
    assert (late.status, good.status) == (Status.EXPIRED, Status.OK)
    assert all(map(math.isnan, late.outputs))
    assert late.send_time_ns > now_ns + MS - 1
    assert good.outputs == (2.0, 0.0)
    assert rig.counters.by_status[Status.EXPIRED] == 1


def test_a_batch_of_which_nothing_runs_does_not_call_the_model(rig: Rig) -> None:
    client = rig.connect()
    client.say(rig.request(1, deadline_ns=1) + rig.request(2, math.nan))
    rig.run()
    assert client.statuses() == [(1, Status.EXPIRED), (2, Status.BAD_INPUT)]
    assert rig.backend.batches == []
    assert sum(rig.counters.batches_by_rows) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(4))
def test_a_feature_that_is_no_number_fails_its_own_row(rig: Rig, bad: float, column: int) -> None:
    row = [1.0, 2.0, 3.0, 4.0]
    row[column] = bad
    client, other = rig.connect(), rig.connect()
    client.say(rig.request(1, 1) + rig.request(2, *row) + rig.request(3, 3))
    other.say(rig.request(1, 9))
    rig.run()
    first, wrong, last = client.answers()
    assert (first.status, wrong.status, last.status) == (Status.OK, Status.BAD_INPUT, Status.OK)
    assert (first.outputs[0], last.outputs[0]) == (1.0, 3.0)
    assert all(map(math.isnan, wrong.outputs))
    assert other.answers()[0].outputs[0] == 9.0


@pytest.mark.parametrize("large", [1e30, -3.4e38, 3.4028234e38, 1e-45])
def test_a_number_however_large_is_no_bad_input(rig: Rig, large: float) -> None:
    client = rig.connect()
    for sequence in (1, 2):  # the full way, then the short one
        client.say(rig.request(sequence, large, large, 0, large))
        rig.run()
    assert client.statuses() == [(1, Status.OK), (2, Status.OK)]


def test_busy_past_in_flight_max(make_rig: type[Rig]) -> None:
    rig = make_rig(synchronous=False, in_flight_max=10)
    client = rig.connect()
    client.say(rig.requests(range(25)))
    rig.run()
    assert client.statuses() == [(n, Status.OK if n < 10 else Status.BUSY) for n in range(25)]
    assert rig.backend.rows_run == 10
    client.say(rig.requests(range(25, 30)))
    rig.run()
    assert client.statuses() == [(n, Status.OK) for n in range(25, 30)]


def test_busy_past_the_bound_of_all_clients_together(make_rig: type[Rig]) -> None:
    rig = make_rig(rows_pending_max=12)
    first, second = rig.connect(), rig.connect()
    first.say(rig.requests(range(9)))
    second.say(rig.requests(range(9)))
    first.say(rig.requests([9]))
    rig.run()
    assert first.statuses() == [(n, Status.OK if n < 9 else Status.BUSY) for n in range(10)]
    assert second.statuses() == [(n, Status.OK if n < 3 else Status.BUSY) for n in range(9)]
    assert rig.batcher.pending_rows == 0
    second.say(rig.request(20))
    rig.run()
    assert second.statuses() == [(20, Status.OK)]


def test_what_fills_the_buffer_waits_unread_and_nothing_is_lost(make_rig: type[Rig]) -> None:
    rig = make_rig(synchronous=False, in_flight_max=2000)
    client = rig.connect()
    total = 10_000
    client.write(rig.requests(range(total)))
    while client.deliver():
        pass
    assert client.paused
    held = client.session.pending_rows
    assert held >= 2000 + EXCESS_ROWS
    assert client.unread, "left where it was"
    rig.run()
    answers = client.statuses()
    assert [sequence for sequence, _ in answers] == list(range(total))
    assert {status for _, status in answers} == {Status.OK, Status.BUSY}
    assert not client.paused


# -- conflation ----------------------------------------------------------------------------------------------------


def test_conflation_keeps_the_newest_of_each_instrument(rig: Rig) -> None:
    client = rig.connect(flags=HelloFlag.CONFLATE)
    for sequence, instrument_id in enumerate([7, 8, 7, 9, 8, 7]):
        client.write(rig.request(sequence, sequence, instrument_id=instrument_id))
    client.say()
    rig.run()
    kept = {3, 4, 5}
    assert client.statuses() == [(n, Status.OK if n in kept else Status.CONFLATED) for n in range(6)]
    assert np.array_equal(rig.backend.batches[0][:, 0], [3, 4, 5])


def test_conflation_looks_past_the_end_of_the_batch(rig: Rig) -> None:
    client = rig.connect(flags=HelloFlag.CONFLATE)
    client.say(rig.requests(range(20), instrument_id=1))
    rig.run()
    assert client.statuses() == [(n, Status.OK if n == 19 else Status.CONFLATED) for n in range(20)]
    assert rig.backend.rows_run == 1


def test_conflation_is_each_clients_own_and_only_where_granted(rig: Rig) -> None:
    conflating, plain = rig.connect(flags=HelloFlag.CONFLATE), rig.connect()
    for client in (conflating, plain, conflating):
        client.say(rig.request(1, instrument_id=5))
    plain.say(rig.request(2, instrument_id=5))
    rig.run()
    assert conflating.statuses() == [(1, Status.CONFLATED), (1, Status.OK)]
    assert plain.statuses() == [(1, Status.OK), (2, Status.OK)]


def test_a_request_that_runs_already_is_not_conflated(make_rig: type[Rig]) -> None:
    rig = make_rig(synchronous=False)
    client = rig.connect(flags=HelloFlag.CONFLATE)
    client.say(rig.request(1, instrument_id=5))
    rig.batcher.poll()
    client.say(rig.request(2, instrument_id=5))
    rig.run()
    assert client.statuses() == [(1, Status.OK), (2, Status.OK)]


def test_a_request_that_will_not_run_overtakes_none(make_rig: type[Rig]) -> None:
    """Or the daemon's own BUSY would cost the client the signal that it could have had."""
    rig = make_rig(synchronous=False, in_flight_max=2)
    client = rig.connect(flags=HelloFlag.CONFLATE)
    client.say(rig.requests(range(4), instrument_id=5))
    rig.run()
    assert client.statuses() == [
        (0, Status.CONFLATED),
        (1, Status.OK),
        (2, Status.BUSY),
        (3, Status.BUSY),
    ]
    client.say(rig.request(4, instrument_id=6) + rig.request(5, instrument_id=6, deadline_ns=1))
    rig.run()
    assert client.statuses() == [(4, Status.OK), (5, Status.EXPIRED)]
    client.say(rig.request(6, instrument_id=7))
    client.session.drain(GoodbyeCode.DRAINING)
    client.say(rig.request(7, instrument_id=7))
    rig.run()
    _, running, refused = client.received()
    assert (running.status, refused.status) == (Status.OK, Status.DRAINING)  # type: ignore[union-attr]


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [NAN_OUTPUT, INF_OUTPUT])
def test_an_output_that_is_no_number_fails_its_own_row(rig: Rig, poison: float) -> None:
    client, other = rig.connect(), rig.connect()
    client.say(
        rig.request(1, 1) + rig.request(2, 2, 0, poison) + rig.request(3, math.nan) + rig.request(4, 4)
    )
    other.say(rig.request(5, 5))
    rig.run()
    answers = client.answers()
    assert [answer.status.name for answer in answers] == ["OK", "MODEL_ERROR", "BAD_INPUT", "OK"]
    assert [answer.outputs[0] for answer in answers if answer.status == Status.OK] == [1.0, 4.0]
    assert all(map(math.isnan, answers[1].outputs))
    assert (answers[1].batch_rows, answers[2].batch_rows) == (4, 0)
    assert other.answers()[0].outputs[0] == 5.0


@pytest.mark.parametrize(
    "failure", [BackendFailed("the device said no"), ValueError("a bug"), BackendClosed("gone")]
)
def test_a_batch_that_fails_is_answered_and_the_next_one_runs(
    rig: Rig, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    client, other = rig.connect(), rig.connect()
    rig.backend.failure = failure
    client.say(rig.request(1) + rig.request(2, math.nan) + rig.request(3))
    other.say(rig.request(1))
    rig.run()
    assert client.statuses() == [(1, Status.MODEL_ERROR), (2, Status.BAD_INPUT), (3, Status.MODEL_ERROR)]
    (failed,) = other.answers()
    assert (failed.status, failed.batch_rows, failed.infer_ns) == (Status.MODEL_ERROR, 3, 0)
    assert all(map(math.isnan, failed.outputs))
    assert str(failure) in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(failure, ValueError), "where it was not foreseen"
    client.say(rig.request(4, 4))
    rig.run()
    assert client.statuses() == [(4, Status.OK)]
    assert rig.batcher.pending_rows == 0
    assert rig.fatal == []


@pytest.mark.parametrize("failure", [BackendFailed("the device said no"), ValueError("a bug")])
def test_a_lone_request_that_fails_is_answered(make_rig: type[Rig], failure: Exception) -> None:
    rig = make_rig()
    client = rig.connect()
    client.say(rig.request(1))
    rig.run()
    rig.backend.failure = failure
    client.say(rig.request(2))
    assert client.statuses() == [(1, Status.OK), (2, Status.MODEL_ERROR)]
    client.say(rig.request(3))
    rig.run()
    assert client.statuses() == [(3, Status.OK)]
    assert rig.batcher.pending_rows == 0


def test_failures_are_logged_once_a_second(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    client = rig.connect()
    for sequence in range(20):
        rig.backend.failure = BackendFailed("again")
        rig.clock.now_ns += 100 * MS
        client.say(rig.request(sequence))
        rig.run()
    assert len(caplog.records) == 2
    assert {status for _, status in client.statuses()} == {Status.MODEL_ERROR}


def test_a_failure_that_the_process_cannot_survive(rig: Rig) -> None:
    client = rig.connect()
    failure = BackendFailed("sticky", fatal=True)
    rig.backend.failure = failure
    client.say(rig.requests(range(12)))
    rig.run()
    assert client.statuses() == [(n, Status.MODEL_ERROR) for n in range(12)]
    assert rig.fatal == [failure], "said once"
    assert len(rig.backend.batches) == 1, "and the device is left alone"


def test_a_failure_of_a_lone_request_that_the_process_cannot_survive(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = rig.connect()
    client.say(rig.request(1))
    rig.run()
    rig.backend.failure = BackendFailed("sticky", fatal=True)
    for sequence in range(2, 6):
        client.say(rig.request(sequence))
        rig.run()
    assert client.statuses() == [(1, Status.OK), *((n, Status.MODEL_ERROR) for n in range(2, 6))]
    assert len(rig.fatal) == 1
    assert len(rig.backend.batches) == 2


def test_an_error_of_the_daemon_itself_ends_one_connection(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clients = [rig.connect(client_name=f"client-{n}") for n in range(3)]
    unlucky = clients[1].session

    def broken_screen(session: object, *rest: object) -> object:
        if session is unlucky:
            raise RuntimeError("a bug in screening")
        return screen(session, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(batcher_module, "screen", broken_screen)
    for client in clients:
        client.say(rig.request(1))
    rig.run()
    assert [client.finished for client in clients] == [False, True, False]
    assert [len(client.answers()) for client in clients] == [1, 0, 1]
    assert "client-1" in caplog.text
    assert "a bug in screening" in caplog.text


def test_an_error_while_answering_ends_one_connection(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    clients = [rig.connect() for _ in range(3)]

    def broken_send(data: memoryview | bytes) -> None:
        raise RuntimeError("a bug in the transport")

    clients[0].send = broken_send  # type: ignore[method-assign]
    for client in clients:
        client.say(rig.request(1))
    rig.run()
    assert [client.finished for client in clients] == [True, False, False]
    assert [len(client.answers()) for client in clients] == [0, 1, 1]
    assert caplog.records[0].levelno == logging.ERROR
    assert rig.batcher.pending_rows == 0


# -- endings in the middle of it -----------------------------------------------------------------------------------


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


# -- everything together -------------------------------------------------------------------------------------------

KINDS = ("good", "nan", "late", "soon", "nan output", "longer")
clients_of_three = st.integers(0, 2)
events = st.one_of(
    st.tuples(st.just("write"), clients_of_three, st.lists(st.sampled_from(KINDS), min_size=1, max_size=30)),
    st.tuples(st.just("deliver"), clients_of_three, st.one_of(st.integers(1, 200), st.just(1 << 20))),
    st.tuples(st.just("heartbeat"), clients_of_three, st.integers(1, 40)),
    st.tuples(st.just("poll"), st.just(0), st.just(None)),
    st.tuples(st.just("finish"), st.just(0), st.just(None)),
    st.tuples(st.just("wait"), st.just(0), st.integers(1, 3 * MS)),
    st.tuples(st.just("fail"), st.just(0), st.booleans()),
    st.tuples(st.just("turn"), clients_of_three, st.just(None)),
    st.tuples(st.sampled_from(["end", "lose", "drain", "wind up"]), clients_of_three, st.just(None)),
)

ALLOWED = {
    "good": {Status.OK},
    "longer": {Status.OK},
    "nan": {Status.BAD_INPUT},
    "late": {Status.EXPIRED},
    "soon": {Status.OK, Status.EXPIRED},
    "nan output": {Status.MODEL_ERROR},
}


class Story:
    """Applies events to a rig and keeps the account of who is owed what."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        flags = (HelloFlag.NONE, HelloFlag.CONFLATE, HelloFlag.NONE)
        self.clients = [rig.connect(flags=flag) for flag in flags]
        self.written: list[list[str]] = [[], [], []]
        self.answered: list[list[Answer]] = [[], [], []]
        self.lost: set[int] = set()
        self.ended: set[int] = set()
        self.drained: set[int] = set()
        self.heartbeats = 0
        self.failed = False

    def apply(self, event: str, index: int, detail: object) -> None:
        rig, client = self.rig, self.clients[index]
        alive = index not in self.lost and index not in self.ended and not client.finished
        if event == "poll":
            rig.batcher.poll()
        elif event == "finish":
            rig.backend.finished = True
        elif event == "wait":
            assert isinstance(detail, int)
            rig.clock.now_ns += detail
        elif event == "fail":
            rig.backend.failure = BackendFailed("by chance") if detail else OSError("by surprise")
            self.failed = True
        elif not alive:
            return
        elif event == "write":
            assert isinstance(detail, list)
            for kind in detail:
                client.write(self.frame(index, kind))
        elif event == "deliver":
            assert isinstance(detail, int)
            client.deliver(detail)
        elif event == "heartbeat":
            assert isinstance(detail, int)
            client.write(Heartbeat(0).encode() * detail)
        elif event == "turn":
            client.take_turn()
        else:
            self.finish(event, index)

    def finish(self, event: str, index: int) -> None:
        client = self.clients[index]
        if event == "end" and not client.paused:
            # The end of the stream is read only once everything before it is.
            while client.deliver():
                pass
            if not client.unread:
                client.end()
                self.ended.add(index)
        elif event == "lose":
            self.take(index)
            client.lose()
            self.lost.add(index)
        elif event == "drain":
            client.session.drain(GoodbyeCode.DRAINING)
            self.drained.add(index)
        elif event == "wind up":
            client.session.wind_up(self.rig.clock())
            self.ended.add(index)
            self.drained.add(index)

    def frame(self, index: int, kind: str) -> bytes:
        sequence = len(self.written[index])
        self.written[index].append(kind)
        now_ns = self.rig.clock.now_ns
        return self.rig.request(
            sequence,
            math.nan if kind == "nan" else sequence,
            index,
            NAN_OUTPUT if kind == "nan output" else 0,
            deadline_ns={"late": now_ns - 1, "soon": now_ns + MS}.get(kind, 0),
            instrument_id=sequence % 3,
            version=2 if kind == "longer" else 1,
            longer_bytes=24 if kind == "longer" else 0,
        )

    def take(self, index: int) -> None:
        for item in self.clients[index].received():
            if isinstance(item, Heartbeat):
                self.heartbeats += 1
            elif hasattr(item, "sequence"):
                self.answered[index].append(item)  # type: ignore[arg-type]

    def check(self) -> None:
        for index in range(3):
            if index in self.lost:
                continue
            self.take(index)
            answers = self.answered[index]
            assert [answer.sequence for answer in answers] == list(range(len(answers))), (
                "in order, none twice"
            )
            for answer in answers:
                self.check_answer(index, answer)

    def check_answer(self, index: int, answer: Answer) -> None:
        allowed = ALLOWED[self.written[index][answer.sequence]] | {Status.BUSY}
        if self.failed:
            allowed |= {Status.MODEL_ERROR}
        if index == 1:
            allowed |= {Status.CONFLATED}
        if index in self.drained:
            allowed |= {Status.DRAINING}
        assert answer.status in allowed
        assert answer.instrument_id == answer.sequence % 3
        if answer.status == Status.OK:
            assert answer.outputs == (answer.sequence, index)
        else:
            assert all(map(math.isnan, answer.outputs))


@given(synchronous=st.booleans(), story=st.lists(events, max_size=60))
def test_every_request_gets_one_answer_in_order_whatever_happens(
    make_rig: type[Rig], synchronous: bool, story: list[tuple[str, int, object]]
) -> None:
    rig = make_rig(synchronous=synchronous, in_flight_max=20, rows_pending_max=50)
    told = Story(rig)
    for event in story:
        told.apply(*event)
        told.check()
    rig.run()
    told.check()
    assert rig.batcher.pending_rows == 0
    assert rig.batcher.idle
    for index, client in enumerate(told.clients):
        if index not in told.lost and index not in told.ended:
            assert len(told.answered[index]) == len(told.written[index]), "everything is answered"
            assert not client.paused
    counted = sum(rig.counters.by_status)
    received = sum(map(len, told.answered))
    assert received <= counted if told.lost else received == counted
    if not told.lost:
        assert told.heartbeats == rig.counters.heartbeats


@given(st.data())
def test_hello_and_requests_in_pieces_of_any_size(make_rig: type[Rig], data: st.DataObject) -> None:
    rig = make_rig(synchronous=data.draw(st.booleans()))
    client = rig.client()
    count = data.draw(st.integers(0, 40))
    client.write(Hello().encode() + rig.requests(range(count)))
    while client.unread:
        client.deliver(data.draw(st.integers(1, 400)))
        if data.draw(st.booleans()):
            rig.backend.finished = True
            rig.batcher.poll()
    rig.run()
    _, *answers = client.received()
    assert [answer.sequence for answer in answers] == list(range(count))  # type: ignore[union-attr]
