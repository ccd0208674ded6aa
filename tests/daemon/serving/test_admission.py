"""Which rows run, and what the others are told instead."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.daemon.config.limits import FEW_ROWS
from sigd.daemon.serving.session import EXCESS_ROWS
from sigd.wire.status import GoodbyeCode, HelloFlag, Status

if TYPE_CHECKING:
    from tests.daemon.conftest import Rig

MS = 1_000_000


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
    rig = make_rig(rows_pending_max=50)
    first, second = rig.connect(), rig.connect()
    first.say(rig.requests(range(30)))
    second.say(rig.requests(range(30)))
    first.say(rig.requests([30]))
    rig.run()
    assert first.statuses() == [(n, Status.OK if n < 30 else Status.BUSY) for n in range(31)]
    assert second.statuses() == [(n, Status.OK if n < 20 else Status.BUSY) for n in range(30)]
    assert rig.batcher.pending_rows == 0
    second.say(rig.request(40))
    rig.run()
    assert second.statuses() == [(40, Status.OK)]


def test_client_that_asks_for_little_is_not_turned_away_for_others(make_rig: type[Rig]) -> None:
    rig = make_rig(rows_pending_max=50)
    greedy = [rig.connect() for _ in range(3)]
    for client in greedy:
        client.say(rig.requests(range(40)))
    modest = rig.connect()
    modest.say(rig.requests(range(FEW_ROWS + 4)))
    rig.run()
    answered = [[status for _, status in client.statuses()].count(Status.OK) for client in greedy]
    assert answered == [40, FEW_ROWS, FEW_ROWS], "the bound is kept where it is not about few"
    assert modest.statuses() == [(n, Status.OK if n < FEW_ROWS else Status.BUSY) for n in range(FEW_ROWS + 4)]


def test_what_fills_the_buffer_waits_unread_and_nothing_is_lost(make_rig: type[Rig]) -> None:
    rig = make_rig(synchronous=False, in_flight_max=2000)
    client = rig.connect()
    total = 10_000
    client.write(rig.requests(range(total)))
    while client.deliver():
        pass
    assert client.paused
    held = client.session.inbox.rows
    assert held >= 2000 + EXCESS_ROWS
    assert client.unread, "left where it was"
    rig.run()
    answers = client.statuses()
    assert [sequence for sequence, _ in answers] == list(range(total))
    assert {status for _, status in answers} == {Status.OK, Status.BUSY}
    assert not client.paused


# -- conflation


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
