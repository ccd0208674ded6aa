"""Heartbeats and Goodbyes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.wire.client.lines import FEATURES, ROW, Line, answer

from sigd.wire.client import Client
from sigd.wire.errors import ReceiveTimeout, Rejected, SessionClosed
from sigd.wire.messages import Goodbye, Heartbeat, Reject
from sigd.wire.status import GoodbyeCode, RejectCode

if TYPE_CHECKING:
    from tests.wire.client.conftest import Dial


def test_a_heartbeat_is_answered_and_answers_meanwhile_are_kept(dial: Dial) -> None:
    with dial(Line.echo) as client:
        client.send_many(np.ones((3, FEATURES)))
        assert client.heartbeat() == 777
        assert client.heartbeat() == 777
        assert client.receive_many(3)["sequence"].tolist() == [0, 1, 2]


def test_no_sign_of_life(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        assert Heartbeat.decode(line.read_control(16)[8:]).clock_ns > 0
        line.connection.recv(16)

    with dial(scene) as client, pytest.raises(ReceiveTimeout, match="no Heartbeat came back"):
        client.heartbeat(timeout_s=0.02)


def test_heartbeats_of_the_daemons_own_are_no_answers(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(1)
        line.send(Heartbeat(1).encode(), Heartbeat(2).encode(), answer(0))

    with dial(scene) as client:
        assert client.request(ROW).sequence == 0


def test_model_info_is_told_and_answers_meanwhile_are_kept(dial: Dial) -> None:
    with dial(Line.echo) as client:
        client.send_many(np.ones((3, FEATURES)))
        known, unknown = client.model_info(2), client.model_info()
        assert (known.model_generation, known.model_sha256, known.known) == (2, bytes([2]) * 32, True)
        assert (unknown.model_generation, unknown.known) == (3, False)
        assert client.receive_many(3)["sequence"].tolist() == [0, 1, 2]


def test_request_goes_on_after_a_timeout(dial: Dial) -> None:
    waited = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        line.read(2)
        waited.wait(60)
        line.send(answer(0), answer(1))
        line.read(1)
        line.send(answer(2))

    with dial(scene) as client:
        for _ in range(2):
            with pytest.raises(ReceiveTimeout):
                client.request(ROW, timeout_s=0.02)
        waited.set()
        assert client.request(ROW).sequence == 2
        assert client.unanswered == 0


def test_late_answers_can_be_taken_instead(dial: Dial) -> None:
    waited = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        line.read(1)
        waited.wait(60)
        line.send(answer(0))
        line.read(1)
        line.send(answer(1))

    with dial(scene) as client:
        with pytest.raises(ReceiveTimeout):
            client.request(ROW, timeout_s=0.02)
        waited.set()
        assert client.receive().sequence == 0
        assert client.request(ROW).sequence == 1


def test_goodbye_collects_what_is_unanswered(dial: Dial) -> None:
    with dial(Line.echo) as client:
        client.send_many(np.ones((5, FEATURES)))
        client.receive()
        assert client.goodbye()["sequence"].tolist() == [1, 2, 3, 4]
        assert client.fileno() == -1


def test_goodbye_to_a_daemon_that_leaves_requests_unanswered(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(2)
        line.read_control(16)
        line.send(answer(0), Goodbye().encode())

    with dial(scene) as client:
        client.send_many(np.ones((2, FEATURES)))
        with pytest.raises(SessionClosed, match="1 requests are unanswered") as caught:
            client.goodbye()
        assert caught.value.unanswered == 1
        assert client.receive().sequence == 0, "what came can still be taken"


def test_goodbye_to_a_daemon_that_rejects(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read_control(16)
        line.send(Reject(RejectCode.PROTOCOL_VIOLATION, "not like this").encode())

    with dial(scene) as client, pytest.raises(Rejected, match="not like this"):
        client.goodbye()


def test_goodbye_to_a_daemon_that_has_just_drained(dial: Dial) -> None:
    closed = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        line.read(2)
        line.send(Goodbye(GoodbyeCode.DRAINING).encode(), answer(0), answer(1))
        line.connection.close()
        closed.set()

    with dial(scene) as client:
        client.send_many(np.ones((2, FEATURES)))
        assert closed.wait(10)
        assert client.goodbye()["sequence"].tolist() == [0, 1]
        assert client.goodbye_code == GoodbyeCode.DRAINING


def test_goodbye_to_a_daemon_that_does_not_go(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read_control(16)
        line.connection.recv(16)

    with (
        dial(scene) as client,
        pytest.raises(ReceiveTimeout, match="did not close the connection after Goodbye"),
    ):
        client.goodbye(timeout_s=0.02)


def test_the_daemons_goodbye_is_noted_and_answers_go_on(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(2)
        line.send(answer(0), Goodbye(GoodbyeCode.MODEL_WITHDRAWN).encode(), answer(1))

    with dial(scene) as client:
        client.send_many(np.ones((2, FEATURES)))
        assert client.receive_many(2)["sequence"].tolist() == [0, 1]
        with pytest.raises(SessionClosed, match="0 requests are unanswered"):
            client.receive()
        assert client.goodbye_code == GoodbyeCode.MODEL_WITHDRAWN


def test_every_public_call_says_what_it_raises() -> None:
    for name, value in vars(Client).items():
        if callable(value) and not name.startswith("_") and name not in ("close", "fileno"):
            assert value.__doc__ is not None
            assert "Raises" in value.__doc__ or name == "request", name
