"""What only a stream can do to a client: frames cut anywhere, bytes that are no frames, a connection
reset."""

from __future__ import annotations

import math
import socket
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.wire.client.lines import FEATURES, REQUEST_BYTES, ROW, WELCOME, StreamLine, answer, newer

from sigd.wire.client import connect
from sigd.wire.errors import ProtocolBroken, ReceiveTimeout, SessionClosed
from sigd.wire.messages import Heartbeat, Hello

if TYPE_CHECKING:
    from tests.wire.client.conftest import StartDaemon


def test_closed_by_a_daemon_that_left_requests_unread(daemon: StartDaemon) -> None:
    """The kernel resets such a connection; what the daemon said before is still there."""

    def scene(line: StreamLine) -> None:
        line.greet()
        line.read(1)
        line.send(answer(0))
        line.connection.recv(REQUEST_BYTES, socket.MSG_PEEK)

    with connect(daemon(scene)) as client:
        client.send(ROW)
        client.send(ROW)
        assert client.receive().sequence == 0
        with pytest.raises(SessionClosed, match=r"reset by peer.* 1 requests are unanswered"):
            client.receive()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (answer(1), "answered sequence 1, expected 0"),
        (answer(0, (1.0, 2.0, 3.0)), "no valid frame: SignalResponse of 72 bytes, expected 64"),
        (b"\0" * 8, "no valid frame: schema 0"),
        (Hello().encode(), "sent template 1, expected an answer"),
        (WELCOME.encode(), "sent template 2, expected an answer"),
    ],
)
def test_a_daemon_that_breaks_the_contract(daemon: StartDaemon, reply: bytes, message: str) -> None:
    def scene(line: StreamLine) -> None:
        line.greet()
        line.read(1)
        line.send(reply)

    with connect(daemon(scene)) as client:
        client.send(ROW)
        for _ in range(2):
            with pytest.raises(ProtocolBroken, match=message):
                client.receive()
        with pytest.raises(ProtocolBroken, match=message):
            client.send(ROW)


def test_a_newer_daemons_longer_answers(daemon: StartDaemon) -> None:
    def scene(line: StreamLine) -> None:
        line.greet()
        line.read(5)
        stream = answer(0) + newer(answer(1)) + newer(answer(2)) + newer(Heartbeat(1).encode()) + answer(3)
        for start in range(0, len(stream), 100):
            line.send(stream[start : start + 100])
        line.send(newer(answer(4), version=3, longer_bytes=1024))

    with connect(daemon(scene)) as client:
        client.send_many(np.ones((5, FEATURES)))
        answers = client.receive_many(5)
        assert answers["sequence"].tolist() == [0, 1, 2, 3, 4]
        assert answers["outputs"].tolist() == [[1, 2]] * 5


def test_an_answer_that_comes_in_two_halves(daemon: StartDaemon) -> None:
    may_go_on = threading.Event()

    def scene(line: StreamLine) -> None:
        line.greet()
        line.read(1)
        line.send(answer(0)[:30])
        assert may_go_on.wait(10)
        line.send(answer(0)[30:])

    with connect(daemon(scene)) as client:
        client.send(ROW)
        with pytest.raises(ReceiveTimeout, match="0 of 1 answers came"):
            client.receive(0.01)
        may_go_on.set()
        assert client.receive(math.inf).sequence == 0
