"""A batch that fails is answered; an error ends what it concerns and nothing else."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.daemon.serving import batcher as batcher_module
from sigd.daemon.serving.admission import admit_to_batch
from sigd.models.errors import BackendClosed, BackendFailed
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig

pytestmark = pytest.mark.usefixtures("each_fast_path")

NAN_OUTPUT = -7.0
INF_OUTPUT = -8.0
FAILS = -9.0
MS = 1_000_000


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
    "failure",
    [
        BackendFailed("the device said no"),
        ValueError("a bug"),
        BackendClosed("gone"),
        MemoryError("none left"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_batch_of_which_every_row_fails_is_answered_and_the_next_one_runs(
    rig: Rig, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    client, other = rig.connect(), rig.connect()
    rig.backend.broken = failure
    client.say(rig.request(1) + rig.request(2, math.nan) + rig.request(3))
    other.say(rig.request(1))
    rig.run()
    assert client.statuses() == [(1, Status.MODEL_ERROR), (2, Status.BAD_INPUT), (3, Status.MODEL_ERROR)]
    (failed,) = other.answers()
    assert (failed.status, failed.batch_rows) == (Status.MODEL_ERROR, 3)
    assert all(map(math.isnan, failed.outputs))
    assert str(failure) in caplog.text
    assert ("Traceback" in caplog.text) != isinstance(failure, BackendFailed), "where it was not foreseen"
    rig.backend.broken = None
    client.say(rig.request(4, 4))
    rig.run()
    assert client.statuses() == [(4, Status.OK)]
    assert rig.batcher.pending_rows == 0
    assert rig.fatal == []


def test_batcher_runs_a_failed_batch_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    client = rig.connect()
    rig.backend.failure = BackendFailed("by chance")
    client.say(rig.requests(range(5)))
    rig.run()
    assert client.statuses() == [(n, Status.OK) for n in range(5)]
    assert caplog.records == [], "no row failed"


@given(data=st.data())
def test_batcher_fails_the_rows_that_fail_by_themselves_and_no_other(
    make_rig: type[Rig], data: st.DataObject
) -> None:
    rig = make_rig(
        synchronous=data.draw(st.booleans(), "synchronous"),
        batch_rows_max=data.draw(st.sampled_from([1, 2, 3, 8]), "batch_rows_max"),
    )
    rows = data.draw(
        st.lists(
            st.lists(st.sampled_from([0.0, FAILS, NAN_OUTPUT, math.nan]), max_size=9), min_size=1, max_size=4
        )
    )
    clients = [rig.connect() for _ in rows]
    for client, thirds in zip(clients, rows, strict=True):
        client.say(b"".join(rig.request(n, n, 2 * n, third) for n, third in enumerate(thirds)))
    rig.run()
    told = {FAILS: Status.MODEL_ERROR, NAN_OUTPUT: Status.MODEL_ERROR, 0.0: Status.OK}
    for client, thirds in zip(clients, rows, strict=True):
        answers = client.answers()
        assert [answer.status for answer in answers] == [
            told.get(third, Status.BAD_INPUT) for third in thirds
        ]
        for n, answer in enumerate(answers):
            if answer.status is Status.OK:
                assert answer.outputs == (n, 2 * n)
    assert rig.batcher.idle
    assert rig.batcher.pending_rows == 0


def test_rerun_takes_no_more_runs_than_halving_does(make_rig: type[Rig]) -> None:
    rig = make_rig(batch_rows_max=64)
    client = rig.connect()
    client.say(b"".join(rig.request(n, n, 0, FAILS if n == 41 else 0) for n in range(64)))
    rig.run()
    assert [n for n, status in client.statuses() if status is Status.MODEL_ERROR] == [41]
    assert len(rig.backend.batches) == 1 + 2 * 6
    assert rig.counters.batches_by_rows[64] == 1


def test_log_names_the_client_and_instrument_whose_row_failed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = rig.connect(client_name="good"), rig.connect(client_name="bad")
    good.say(rig.requests(range(3)))
    bad.say(rig.request(1) + rig.request(2, 0, 0, FAILS, instrument_id=77))
    rig.run()
    (record,) = caplog.records
    assert record.getMessage() == (
        "model fake failed on a row of client 'bad', instrument 77: index 50 is outside of 0 to 9"
    )
    assert good.statuses() == [(n, Status.OK) for n in range(3)]


@pytest.mark.parametrize("synchronous", [True, False])
def test_client_that_leaves_while_its_batch_is_run_again_gets_no_answer(
    make_rig: type[Rig], synchronous: bool
) -> None:
    rig = make_rig(synchronous=synchronous)
    client, other = rig.connect(), rig.connect()
    client.say(rig.request(1, 0, 0, FAILS) + rig.request(2))
    other.say(rig.request(3, 3))
    rig.backend.finished = True
    rig.batcher.poll()
    rig.backend.finished = True
    rig.batcher.poll()
    client.session.close()
    rig.run()
    assert other.statuses() == [(3, Status.OK)]
    assert rig.batcher.pending_rows == 0


def test_swap_waits_for_a_batch_that_is_run_again(make_rig: type[Rig]) -> None:
    rig = make_rig()
    client = rig.connect()
    client.say(rig.request(1, 5) + rig.request(2, 0, 0, FAILS))
    rig.batcher.poll()
    old = rig.backend
    rig.swap(factor=2.0)
    closed_early = old.closed
    rig.run()
    assert (closed_early, old.closed) == (False, True)
    first, second = client.answers()
    assert (first.outputs[0], first.model_generation, second.status) == (5.0, 1, Status.MODEL_ERROR)


@pytest.mark.parametrize("failure", [BackendFailed("the device said no"), ValueError("a bug")])
def test_fast_path_failure_runs_again_on_the_batch_path(make_rig: type[Rig], failure: Exception) -> None:
    rig = make_rig()
    client = rig.connect()
    client.say(rig.request(1))
    rig.run()
    rig.backend.failure = failure
    client.say(rig.request(2))
    assert client.statuses() == [(1, Status.OK)]
    rig.run()
    client.say(rig.request(3))
    assert client.statuses() == [(2, Status.OK), (3, Status.OK)], "and the path is open again"
    assert rig.batcher.pending_rows == 0


def test_failures_are_logged_once_a_second(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    client = rig.connect()
    for sequence in range(20):
        rig.backend.broken = BackendFailed("again")
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


def test_fast_path_failure_that_the_process_cannot_survive_is_not_tried_again(make_rig: type[Rig]) -> None:
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
        return admit_to_batch(session, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(batcher_module, "admit_to_batch", broken_screen)
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

    clients[0].session.send_answers = broken_send
    for client in clients:
        client.say(rig.request(1))
    rig.run()
    assert [client.finished for client in clients] == [True, False, False]
    assert [len(client.answers()) for client in clients] == [0, 1, 1]
    assert caplog.records[0].levelno == logging.ERROR
    assert rig.batcher.pending_rows == 0
