"""Clients that take all they can get, beside one that asks for little: it is answered, whatever they do.

How long it waits is not looked at here, for that is the machine's affair too; that it is never passed over
is: see tests/daemon/serving/test_batcher.py for who gets into which batch.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.wire.fields import SIGNAL_REQUEST
from sigd.wire.layout import frame_dtype, header_word
from sigd.wire.messages import Heartbeat, Hello
from sigd.wire.status import Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

FEATURES_MAX = 16_373
"""Whose requests are as long as a frame can be."""
WELCOME_BYTES = 128
ASKED = 50
"""Requests of the one that asks for little."""


def requests(count: int, features: int = 4) -> bytes:
    frames = np.zeros(count, frame_dtype(SIGNAL_REQUEST, features))
    frames.view(np.uint64).reshape(count, -1)[:, 0] = header_word(10, frames.itemsize)
    frames["sequence"] = range(count)
    return frames.tobytes()


class Greedy:
    """A client that says the same over and over and throws away what comes back.

    Attributes:
        received_bytes: what came back.
    """

    def __init__(self, daemon: Daemon, said: bytes) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(str(daemon.socket))
        self.connection.sendall(Hello(client_name="greedy").encode())
        self.connection.setblocking(False)
        self.received_bytes = 0
        self._said = self._unsent = memoryview(said)

    def go_on(self) -> None:
        """Say and take what can be."""
        with contextlib.suppress(BlockingIOError):
            self._unsent = self._unsent[self.connection.send(self._unsent) :] or self._said
        with contextlib.suppress(BlockingIOError):
            while part := len(self.connection.recv(1 << 20)):
                self.received_bytes += part


@contextlib.contextmanager
def greedy(daemon: Daemon, said: bytes, count: int = 1) -> Iterator[list[Greedy]]:
    """Such clients, at it in a thread of their own, from when each of them has been answered."""
    clients = [Greedy(daemon, said) for _ in range(count)]
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            for client in clients:
                client.go_on()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        daemon.until(lambda status: all(client.received_bytes > WELCOME_BYTES for client in clients))
        yield clients
    finally:
        stop.set()
        thread.join()
        for client in clients:
            client.connection.close()


def asks_little(daemon: Daemon, features: int = 4) -> None:
    with daemon.connect() as client:
        row = np.zeros(features, np.float32)
        for number in range(ASKED):
            row[0] = number
            answer = client.request(row)
            assert (answer.status, answer.outputs[0]) == (Status.OK, number)


def test_a_flood_of_the_largest_requests(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.summed(FEATURES_MAX)))
    with greedy(daemon, requests(40, FEATURES_MAX)) as (flood,):
        before = flood.received_bytes
        asks_little(daemon, FEATURES_MAX)
        assert flood.received_bytes > before, "and the flood was answered too"


def test_a_flood_past_what_may_be_unanswered(daemon: Daemon) -> None:
    with greedy(daemon, requests(2000), count=2):
        asks_little(daemon)
    assert daemon.status().models[0].answers["BUSY"] > 0


def test_a_flood_of_heartbeats_and_requests(daemon: Daemon) -> None:
    with greedy(daemon, (Heartbeat(0).encode() * 100 + requests(1)) * 20):
        asks_little(daemon)


def test_a_hundred_connections_of_one_user_against_one(daemon: Daemon) -> None:
    with greedy(daemon, requests(300), count=100):
        asks_little(daemon)


def test_a_crowd_that_comes_and_goes(daemon: Daemon) -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(daemon.socket))

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        daemon.until(lambda status: status.connections_accepted > 50)
        asks_little(daemon)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert daemon.until(lambda status: status.connections_open == 0).connections_accepted > 51


@pytest.mark.usefixtures("witness")
def test_client_that_sends_byte_by_byte_is_answered_and_keeps_no_other_waiting(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(daemon.socket))
        for byte in Hello().encode() + requests(3) + Heartbeat(0).encode():
            connection.sendall(bytes([byte]))
        expected = 128 + 3 * 72 + 16
        received = bytearray()
        while len(received) < expected:
            received += connection.recv(expected)
        assert len(received) == expected


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize(
    "said", [Heartbeat(0).encode() * 1000, requests(1000)], ids=["heartbeats", "requests"]
)
def test_client_that_never_reads_is_cut_off(daemon: Daemon, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(daemon.socket))
        connection.sendall(Hello(client_name="never reads").encode())
        with pytest.raises(OSError):  # noqa: PT012  which of several, the kernel decides
            for _ in range(5_000):
                connection.sendall(said)
    daemon.until(lambda status: status.slow_readers == 1)


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize(
    "said",
    [lambda draw: b"", lambda draw: Hello().encode()[:40], lambda draw: draw.bytes(100)],
    ids=["nothing", "half a Hello", "anything"],
)
def test_many_that_never_become_clients(daemon: Daemon, said: Callable[[np.random.Generator], bytes]) -> None:
    draw = np.random.default_rng(3)
    with contextlib.ExitStack() as crowd:
        for _ in range(200):
            connection = crowd.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(daemon.socket))
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(said(draw))
        with daemon.connect() as client:
            assert client.request([7, 0, 0, 0]).outputs[0] == 7
