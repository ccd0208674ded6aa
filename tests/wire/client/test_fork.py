"""A client belongs to the process that opened it: in a child after fork() it refuses, and the parent's goes
on."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.wire.client.lines import FEATURES, ROW, Line, answer

from sigd.wire.errors import SessionError, UsedAfterFork

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from tests.wire.client.conftest import Dial

    from sigd.wire.client import Client


def try_all(client: Client, told: Connection) -> None:
    """In the child: what each call raises."""
    calls = (
        lambda: client.receive(0),
        lambda: client.receive_many(timeout_s=0),
        lambda: client.send(ROW),
        lambda: client.send_many(np.ones((2, FEATURES))),
        lambda: client.heartbeat(0),
        client.goodbye,
    )
    said = []
    for call in calls:
        try:
            call()
            said.append("nothing")
        except SessionError as error:
            said.append(f"{type(error).__name__}: {error}")
    client.close()
    told.send(said)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_client_refuses_after_fork_and_parent_goes_on(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.greet()
        line.read(2)
        line.send(answer(0), answer(1))
        line.read(1)
        line.send(answer(2))

    with dial(scene) as client:
        client.send_many(np.ones((2, FEATURES)))
        assert client.receive().sequence == 0
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=try_all, args=(client, there))
        child.start()
        assert here.poll(60), "the child did not answer"
        said = here.recv()
        child.join(60)
        assert child.exitcode == 0
        expected = f"{UsedAfterFork.__name__}: this client was opened by process {os.getpid()} before fork()"
        assert [line.startswith(expected) and "connect anew" in line for line in said] == [True] * 6, said
        assert client.receive().sequence == 1
        client.send(ROW)
        assert client.receive().sequence == 2
