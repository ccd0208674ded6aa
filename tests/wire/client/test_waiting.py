"""Waiting: for answers that are late or do not come, and for room to send."""

from __future__ import annotations

import math
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.wire.client.lines import FEATURES, ROW, Line, answer

from sigd.wire.errors import ReceiveTimeout, Rejected, SessionClosed
from sigd.wire.messages import Reject
from sigd.wire.status import RejectCode

if TYPE_CHECKING:
    from tests.wire.client.conftest import Dial

MORE_THAN_ANY_BUFFER = np.ones((200_000, FEATURES), np.float32)


def test_a_late_answer_still_comes(dial: Dial) -> None:
    may_answer = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        line.read(1)
        assert may_answer.wait(10)
        line.send(answer(0))

    with dial(scene) as client:
        client.send(ROW)
        for timeout_s in (0, 0.01):
            with pytest.raises(ReceiveTimeout, match=r"0 of 1 answers came .* 1 requests are unanswered"):
                client.receive(timeout_s)
        may_answer.set()
        assert client.receive(math.inf).sequence == 0


def test_answers_that_came_are_kept_when_others_did_not(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(3)
        line.send(answer(0), answer(1))
        assert line.connection.recv(16)[2] == 5

    with dial(scene) as client:
        client.send_many(np.ones((3, FEATURES)))
        assert client.receive().sequence == 0
        with pytest.raises(ReceiveTimeout, match="1 of 2 answers came"):
            client.receive_many(2, timeout_s=0.02)
        assert client.receive_many(1)["sequence"].tolist() == [1]
        assert client.unanswered == 1


def test_the_sessions_own_timeout(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.connection.recv(16)

    with dial(scene, timeout_s=0.02) as client, pytest.raises(ReceiveTimeout):
        client.receive()


def test_a_daemon_that_reads_nothing(dial: Dial) -> None:
    done = threading.Event()

    def scene(line: Line) -> None:
        line.greet()
        assert done.wait(10)

    with dial(scene, timeout_s=0.05) as client:
        with pytest.raises(SessionClosed, match=r"made no room within 0\.05 s; .* unanswered") as caught:
            client.send_many(MORE_THAN_ANY_BUFFER)
        assert caught.value.unanswered == client.unanswered > 0
        with pytest.raises(SessionClosed, match="made no room"):
            client.send(ROW)
    done.set()


def test_a_daemon_that_closes_while_the_client_waits_for_room(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(50)
        line.send(answer(0), Reject(RejectCode.PROTOCOL_VIOLATION, "enough").encode())

    with dial(scene) as client:
        with pytest.raises(Rejected, match="enough"):
            client.send_many(MORE_THAN_ANY_BUFFER)
        assert client.receive().sequence == 0
        assert client.fileno() == -1


def test_a_send_that_was_interrupted_half_way_ends_the_session(dial: Dial) -> None:
    heard, stopped, done = threading.Event(), threading.Event(), threading.Event()
    main_thread = threading.get_ident()

    def scene(line: Line) -> None:
        line.greet()
        line.until_the_client_waits()
        # One that comes just before the client sleeps does not wake it: Python hears of it afterwards.
        while not heard.is_set():
            signal.pthread_kill(main_thread, signal.SIGALRM)
            heard.wait(0.05)
        stopped.set()
        assert done.wait(10)

    def interrupt(*_: Any) -> None:
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with dial(scene) as client:
            with pytest.raises(KeyboardInterrupt):
                client.send_many(MORE_THAN_ANY_BUFFER)
            with pytest.raises(SessionClosed, match="a send was broken off"):
                client.send(ROW)
            assert stopped.wait(10)
    finally:
        signal.signal(signal.SIGALRM, before)
        done.set()
