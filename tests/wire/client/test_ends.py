"""How sessions end: in order, by the daemon, by a Reject, and because of what no good daemon sends."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.wire.client.lines import FEATURES, ROW, SLOTS, Line, answer

from sigd.wire.errors import ProtocolBroken, Rejected, SessionClosed
from sigd.wire.messages import Goodbye, Reject
from sigd.wire.status import GoodbyeCode, RejectCode

if TYPE_CHECKING:
    from tests.wire.client.conftest import Dial

    from sigd.wire.client import Client


def send_until_it_fails(client: Client) -> None:
    """At once on a stream; in shared memory when the ring is full, for before that no send looks at the
    socket."""
    for _ in range(SLOTS + 1):
        client.send(ROW)


def test_closed_with_requests_unanswered(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(3)
        line.send(answer(0))

    with dial(scene) as client:
        client.send_many(np.ones((3, FEATURES)))
        assert client.receive().sequence == 0
        for _ in range(2):
            with pytest.raises(SessionClosed, match="2 requests are unanswered") as caught:
                client.receive()
            assert caught.value.unanswered == 2


def test_what_came_before_the_end_can_be_taken(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(2)
        line.send(answer(0), Reject(RejectCode.MALFORMED_FRAME, "odd").encode())

    with dial(scene) as client:
        client.send_many(np.ones((2, FEATURES)))
        assert client.receive().sequence == 0
        for ask in (client.receive, client.receive_many, client.heartbeat, lambda: client.send(ROW)):
            with pytest.raises(Rejected, match="odd"):
                ask()


def test_sending_to_a_daemon_that_rejected_and_closed_says_why(dial: Dial) -> None:
    closed = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        line.send(Reject(RejectCode.PROTOCOL_VIOLATION, "enough").encode())
        line.connection.close()
        closed.set()

    with dial(scene) as client:
        assert closed.wait(10)
        with pytest.raises(Rejected, match="enough"):
            send_until_it_fails(client)


def test_sending_to_a_daemon_that_closed(dial: Dial) -> None:
    closed = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        line.read(2)
        line.send(answer(0))
        line.connection.close()
        closed.set()

    with dial(scene) as client:
        client.send_many(np.ones((2, FEATURES)))
        assert closed.wait(10)
        with pytest.raises(SessionClosed, match="requests are unanswered") as caught:
            send_until_it_fails(client)
        assert caught.value.unanswered == client.unanswered - 1, "one of them was answered"
        assert client.receive().sequence == 0


def test_answer_without_a_request(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.send(answer(0))

    with dial(scene) as client, pytest.raises(ProtocolBroken, match="0, which was not asked"):
        client.receive_many()


def test_answers_in_the_wrong_order_among_many(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(3)
        line.send(answer(0), answer(2), answer(1))

    with dial(scene) as client:
        client.send_many(np.ones((3, FEATURES)))
        with pytest.raises(ProtocolBroken, match="answered sequence 2, expected 1"):
            client.receive_many(3)


def test_closing_says_goodbye(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        assert line.connection.recv(100) == Goodbye(GoodbyeCode.DONE).encode()
        assert line.connection.recv(100) == b""

    with dial(scene) as client:
        assert client.fileno() >= 0
    client.close()
    assert client.fileno() == -1
    for ask in (client.receive, lambda: client.send(ROW), client.heartbeat, client.goodbye):
        with pytest.raises(SessionClosed, match="this client was closed"):
            ask()


def test_closing_after_the_daemon_is_gone(dial: Dial) -> None:
    closed = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        line.connection.close()
        closed.set()

    with dial(scene):
        assert closed.wait(10)
