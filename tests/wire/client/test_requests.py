"""Requests and their answers, one by one and many at once."""

from __future__ import annotations

import math
import struct
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.wire.client.lines import FEATURES, ROW, Line, answer

from sigd.wire.errors import SessionClosed, ShapeError
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.wire.client.conftest import Dial


@pytest.mark.parametrize("spin", [False, True])
def test_one_by_one(dial: Dial, spin: bool) -> None:
    with dial(Line.echo, spin=spin) as client:
        for turn in range(3):
            before_ns = time.monotonic_ns()
            response = client.request(ROW + turn, instrument_id=turn)
            assert response.outputs.tolist() == [turn, turn + 1]
            assert (response.sequence, response.instrument_id, response.status) == (turn, turn, Status.OK)
            assert before_ns <= response.client_time_ns <= time.monotonic_ns()
            assert (response.receive_time_ns, response.send_time_ns) == (1, 2)
            assert (response.infer_ns, response.batch_rows, response.model_generation) == (3, 1, 1)
            assert client.unanswered == 0


def test_what_is_sent(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        first, second = line.read(2)
        assert struct.unpack("<HHHHQQQIHH4f", first.tobytes()) == (
            *(48, 10, 91, 1),
            *(7, 8, 9, 10, 0, 0),
            *(0, 1, 2, 3),
        )
        assert struct.unpack("<8xQ40x", second.tobytes()) == (8,)

    with dial(scene) as client:
        assert client.send(ROW, sequence=7, client_time_ns=8, deadline_ns=9, instrument_id=10) == 7
        assert client.send(ROW) == 8
        assert client.unanswered == 2
        with pytest.raises(SessionClosed):
            client.receive()


def test_pipelined(dial: Dial) -> None:
    with dial(Line.echo) as client:
        sequences = [client.send(ROW * turn) for turn in range(100)]
        assert client.unanswered == 100
        for turn, sequence in enumerate(sequences):
            response = client.receive()
            assert (response.sequence, response.outputs.tolist()) == (sequence, [0, turn])
        assert client.unanswered == 0


def test_many_at_once(dial: Dial) -> None:
    rows = np.random.default_rng(1).standard_normal((1000, FEATURES)).astype(np.float32)
    with dial(Line.echo) as client:
        sent = client.send_many(
            rows,
            sequences=np.arange(5000, 4000, -1),
            client_time_ns=np.arange(1000),
            instrument_id=np.arange(1000) % 7,
        )
        assert sent.tolist() == list(range(5000, 4000, -1))
        answers = client.receive_many(1000)
        assert answers["sequence"].tolist() == sent.tolist()
        assert answers["client_time_ns"].tolist() == list(range(1000))
        assert answers["instrument_id"].tolist() == [turn % 7 for turn in range(1000)]
        assert np.array_equal(answers["outputs"], rows[:, :2])
        assert client.send(ROW) == 4002, "sequences count on from the last"


def test_single_and_many_share_one_book(dial: Dial) -> None:
    with dial(Line.echo) as client:
        client.send(ROW)
        assert client.send_many(np.ones((3, FEATURES))).tolist() == [1, 2, 3]
        assert client.send(ROW) == 4
        assert client.receive().sequence == 0
        assert client.receive_many(2)["sequence"].tolist() == [1, 2]
        assert [client.receive().sequence for _ in range(2)] == [3, 4]


def test_nothing_to_send(dial: Dial) -> None:
    with dial(Line.echo) as client:
        assert client.send_many(np.empty((0, FEATURES))).tolist() == []
        assert client.unanswered == 0
        assert len(client.receive_many(0)) == 0


def test_what_has_come_so_far(dial: Dial) -> None:
    may_go_on = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        line.read(3)
        line.send(answer(0), answer(1))
        assert may_go_on.wait(10)
        line.send(answer(2))

    with dial(scene) as client:
        client.send_many(np.ones((3, FEATURES)))
        assert client.receive_many()["sequence"].tolist() == [0, 1]
        may_go_on.set()
        assert client.receive_many()["sequence"].tolist() == [2]


def test_more_than_all_buffers_hold(dial: Dial) -> None:
    """The daemon stops reading while its answers are not read: a client that only sends would wait for
    ever."""
    rows = np.arange(60_000 * FEATURES, dtype=np.float32).reshape(-1, FEATURES)
    with dial(Line.echo) as client:
        client.send_many(rows)
        assert client.unanswered == 60_000
        answers = client.receive_many(60_000)
        assert np.array_equal(answers["outputs"], rows[:, :2])


def test_one_by_one_more_than_all_buffers_hold(dial: Dial) -> None:
    with dial(Line.echo) as client:
        for _ in range(20_000):
            client.send(ROW)
        assert client.receive_many(20_000)["sequence"].tolist() == list(range(20_000))


def test_statuses_are_answers_not_errors(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        for sequence, status in enumerate([*Status, 55]):
            line.read(1)
            line.send(answer(sequence, (math.nan, math.nan), status))

    with dial(scene) as client:
        for status in Status:
            response = client.request(ROW)
            assert response.status is status
            assert response.ok == (status is Status.OK)
        assert client.request(ROW).status == 55


def test_a_request_among_unanswered_ones_would_get_anothers_answer(dial: Dial) -> None:
    with dial(Line.echo) as client:
        client.send(ROW)
        with pytest.raises(RuntimeError, match="1 requests are unanswered, expected none"):
            client.request(ROW)
        client.receive()
        assert client.request(ROW).sequence == 1


def test_wrong_shapes_and_numbers_send_nothing(dial: Dial) -> None:
    with dial(Line.echo) as client:
        for wrong in (
            lambda: client.send(ROW[:3]),
            lambda: client.send(ROW, sequence=-1),
            lambda: client.send(ROW, instrument_id=2**32),
            lambda: client.send_many(ROW),
            lambda: client.send_many(np.ones((2, 3))),
            lambda: client.send_many(np.ones((2, FEATURES)), sequences=[1]),
            lambda: client.send_many(np.ones((2, FEATURES)), deadline_ns=0.5),
        ):
            with pytest.raises(ShapeError, match="expected"):
                wrong()
        assert client.unanswered == 0
        assert client.request(ROW).sequence == 0
