"""The Python client over shared memory with a real daemon: what it promises over a stream, it keeps here."""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.wire.client import Client
from sigd.wire.errors import Rejected, SessionClosed
from sigd.wire.status import GoodbyeCode, RejectCode, Status, Transport

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

Float32Array = npt.NDArray[np.float32]
Oracle = Callable[[Path, Float32Array], Float32Array]

FEATURES = 8
ROUNDING = 2e-6
"""ONNX Runtime adds in another order than the reference; outputs are near 1."""


def rows_of(seed: int, count: int) -> Float32Array:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def shared(daemon: Daemon, **asked: Any) -> Client:
    client = daemon.connect(shared_memory=True, **asked)
    assert client.welcome.transport == Transport.SHARED_MEMORY
    assert client.welcome.in_flight_max == client.welcome.ring_slots
    return client


@pytest.mark.parametrize("spin", [False, True])
@pytest.mark.parametrize("idle", ["spin", "backoff", "block"])
def test_answers_are_the_models(
    start_daemon: StartDaemon, models: ModelMaker, oracle: Oracle, idle: str, spin: bool
) -> None:
    model = models.mlp(FEATURES)
    daemon = start_daemon("--model", str(model), "--idle", idle, config={"backoff_spin_us": 2_000})
    rows = rows_of(1, 1000)
    expected = oracle(model, rows)
    with shared(daemon, spin=spin, client_name="rings") as client:
        one_by_one = [client.request(row) for row in rows[:30]]
        for index in range(30, 35):  # long enough apart for both sides to fall asleep
            time.sleep(0.01)
            one_by_one.append(client.request(rows[index]))
        sequences = client.send_many(rows[35:])
        answers = client.receive_many(965)
        assert client.heartbeat() > 0
        assert "rings" in daemon.status().clients
    assert all(answer.status == Status.OK for answer in one_by_one)
    assert np.abs(np.array([answer.outputs for answer in one_by_one]) - expected[:35]).max() < ROUNDING
    assert answers["sequence"].tolist() == sequences.tolist()
    assert (answers["status"] == Status.OK).all()
    assert np.abs(answers["outputs"] - expected[35:]).max() < ROUNDING


@pytest.mark.parametrize("ring_slots", [1, 8, 256])
def test_the_slots_that_were_asked_for(
    start_daemon: StartDaemon, models: ModelMaker, ring_slots: int
) -> None:
    """More requests than slots wait in the client, whole and in order; none is BUSY."""
    daemon = start_daemon("--model", str(models.copied(4)))
    rows = np.arange(4000, dtype=np.float32).reshape(-1, 4)
    with shared(daemon, ring_slots=ring_slots) as client:
        assert client.welcome.ring_slots == ring_slots
        client.send_many(rows)
        answers = client.receive_many(1000)
    assert (answers["status"] == Status.OK).all()
    assert np.array_equal(answers["outputs"], rows[:, : answers["outputs"].shape[1]])


def test_bad_input_and_what_is_too_late(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with shared(daemon) as client:
        client.send([1, 2, 3, 4])
        client.send([1, math.nan, 3, 4])
        client.send([1, 2, 3, 4], deadline_ns=1)
        client.send([1, 2, 3, 4], deadline_ns=time.monotonic_ns() + 60_000_000_000)
        statuses = client.receive_many(4)["status"].tolist()
    assert statuses == [Status.OK, Status.BAD_INPUT, Status.EXPIRED, Status.OK]


def test_both_transports_at_once(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    wrong: list[str] = []

    def ask(shared_memory: bool, first: int) -> None:
        with daemon.connect(shared_memory=shared_memory) as client:
            for turn in range(first, first + 300):
                answer = client.request([turn, 0, 0, 0])
                if answer.outputs[0] != turn:
                    wrong.append(f"{answer.outputs[0]} for {turn}")

    threads = [threading.Thread(target=ask, args=(bool(number % 2), 1000 * number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_daemon_that_drains(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.slow(4, 2, layers=100)))
    with shared(daemon) as client:
        client.send_many(np.ones((200, 4)))
        client.receive()
        daemon.process.send_signal(signal.SIGTERM)
        answers = client.receive_many(199)
        assert answers["sequence"].tolist() == list(range(1, 200))
        assert set(answers["status"]) <= {Status.OK, Status.DRAINING}
        with pytest.raises(SessionClosed, match="0 requests are unanswered"):
            client.receive()
        assert client.goodbye_code == GoodbyeCode.DRAINING
    assert daemon.process.wait(60) == 0


@pytest.mark.parametrize("spin", [False, True])
def test_a_daemon_that_is_killed(start_daemon: StartDaemon, models: ModelMaker, spin: bool) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with shared(daemon, spin=spin) as client:
        client.request([1, 2, 3, 4])
        daemon.process.send_signal(signal.SIGSTOP)
        client.send_many(np.ones((3, 4)))
        daemon.stop(signal.SIGKILL)
        with pytest.raises(SessionClosed, match="3 requests are unanswered") as caught:
            client.receive()
        assert caught.value.unanswered == 3


def test_goodbye_collects_what_is_unanswered(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with shared(daemon) as client:
        client.send_many(np.ones((100, 4)))
        assert client.goodbye()["sequence"].tolist() == list(range(100))


def test_a_head_that_runs_ahead_ends_the_session_and_says_why(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with shared(daemon) as client, shared(daemon) as other:
        # A hostile client writes where no client of ours does.
        requests = client._exchange.carrier._requests  # type: ignore[attr-defined]
        requests.words[requests.head_word] = 10**6
        os.eventfd_write(client._exchange.carrier._request_bell, 1)  # type: ignore[attr-defined]
        with pytest.raises(Rejected, match="head at 1000000") as caught:
            client.receive()
        assert caught.value.code == RejectCode.PROTOCOL_VIOLATION
        assert other.request([1, 2, 3, 4]).status == Status.OK


def test_sessions_come_and_go_and_leave_nothing(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)))
    with shared(daemon) as client:
        client.request([1, 2, 3, 4])
    # What tests before this one have left to the collector shall not go away in the middle of it.
    gc.collect()
    own = len(os.listdir("/proc/self/fd"))
    # The first times make what is kept: the ringer of the doorbells, the admin socket's own.
    daemon.until(lambda status: status.connections_open == 0)
    before = daemon.descriptors()
    for turn in range(100):
        with shared(daemon, ring_slots=64) as client:
            client.send_many(np.ones((turn % 3, 4)))
    daemon.until(lambda status: status.connections_open == 0)
    # Where the daemon still has the connection over which it was asked, it will not the next time.
    daemon.until(lambda _: daemon.descriptors() <= before)
    assert len(os.listdir("/proc/self/fd")) == own
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text() + Path("/proc/self/maps").read_text()
    assert "memfd:sigd" not in maps
