"""Broken and hostile clients end their own connections alone."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sigd.wire.errors import Rejected, SessionClosed
from sigd.wire.fields import SIGNAL_REQUEST
from sigd.wire.layout import frame_dtype, header_word
from sigd.wire.messages import Heartbeat, Hello, Reject
from sigd.wire.status import RejectCode, Status

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.e2e.conftest import Daemon, StartDaemon

HEADER = struct.Struct("<HHHH")


def requests(count: int) -> bytes:
    frames = np.zeros(count, frame_dtype(SIGNAL_REQUEST, 4))
    frames.view(np.uint64).reshape(count, -1)[:, 0] = header_word(10, frames.itemsize)
    frames["sequence"] = range(count)
    return frames.tobytes()


@contextlib.contextmanager
def raw(daemon: Daemon, *said: bytes) -> Iterator[socket.socket]:
    """A bare connection on which something has been said."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(daemon.socket))
        for data in said:
            connection.sendall(data)
        yield connection


def until_closed(connection: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):  # where it still had something to say
        while part := connection.recv(1 << 16):
            received += part
    return bytes(received)


def reject_of(received: bytes) -> Reject:
    """The last frame."""
    assert HEADER.unpack_from(received, len(received) - 80)[:2] == (72, 3)
    return Reject.decode(received[-72:])


WRONG_FRAMES = {
    "another protocol": (b"GET / HTTP/1.1\r\n\r\n", RejectCode.UNSUPPORTED_VERSION),
    "version 0": (HEADER.pack(72, 1, 91, 0) + bytes(72), RejectCode.UNSUPPORTED_VERSION),
    "another schema": (HEADER.pack(72, 1, 92, 1) + bytes(72), RejectCode.UNSUPPORTED_VERSION),
    "a Hello too long": (HEADER.pack(80, 1, 91, 1) + bytes(80), RejectCode.MALFORMED_FRAME),
    "a request first": (requests(1), RejectCode.UNEXPECTED_TEMPLATE),
    "another shape": (Hello(features=5).encode(), RejectCode.SHAPE_MISMATCH),
    "another model": (Hello(model_name="other").encode(), RejectCode.UNKNOWN_MODEL),
    "another transport": (Hello(transport=2).encode(), RejectCode.TRANSPORT_UNAVAILABLE),
    "a ring of three slots": (Hello(transport=1, ring_slots=3).encode(), RejectCode.PROTOCOL_VIOLATION),
    "windows": (Hello(flags=2).encode(), RejectCode.SHAPE_MISMATCH),
    "Hello twice": (Hello().encode() * 2, RejectCode.UNEXPECTED_TEMPLATE),
    "garbage after requests": (Hello().encode() + requests(50) + b"\xff" * 8, RejectCode.UNSUPPORTED_VERSION),
    "a request of another size": (
        Hello().encode() + requests(50) + HEADER.pack(24, 10, 91, 1) + bytes(24),
        RejectCode.MALFORMED_FRAME,
    ),
}


@pytest.mark.usefixtures("witness")
def test_a_wrong_frame_is_told_why(daemon: Daemon) -> None:
    told: Counter[str] = Counter()
    for what, (said, code) in WRONG_FRAMES.items():
        with raw(daemon, said) as connection:
            assert reject_of(until_closed(connection)).code == code, what
        told[RejectCode(code).name] += 1
        daemon.until(lambda status: status.rejects == told)


@pytest.mark.usefixtures("witness")
def test_random_bytes(daemon: Daemon) -> None:
    draw = random.Random(7)
    for _ in range(150):
        said = [draw.randbytes(draw.randint(1, 300))]
        if draw.random() < 0.7:
            spoilt = bytearray(Hello().encode() + requests(3) + Heartbeat(1).encode() + requests(2))
            for _ in range(draw.randint(0, 4)):
                spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
            said.insert(0, bytes(spoilt[: draw.randint(1, len(spoilt))]))
        with raw(daemon) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for data in said:
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            until_closed(connection)
    daemon.until(lambda status: status.connections_open == 2)


@pytest.mark.usefixtures("witness")
def test_a_client_that_dies_in_the_middle_of_a_frame(daemon: Daemon) -> None:
    whole = Hello().encode() + requests(5)
    cuts = (1, 7, 8, 40, 79, 81, 100, 135, 137, 200)
    for cut in cuts:
        accepted = daemon.status().connections_accepted
        with raw(daemon, whole[:cut]):
            pass
        until_gone(daemon, accepted + 1)
        assert daemon.status().models[0].pending_rows <= 1, cut


def until_gone(daemon: Daemon, accepted: int) -> None:
    """Until so many have come, and only the witness's two connections are left."""
    daemon.until(
        lambda status: (status.connections_accepted, status.connections_open) == (accepted, 2),
    )


def test_slow_reader_is_cut_off_at_the_bound_and_hurts_no_other(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    bound_bytes = 100_000
    daemon = start_daemon("--model", str(models.copied(4)), config={"unsent_bytes_max": bound_bytes})
    other = daemon.connect()
    with raw(daemon, Hello(client_name="never reads").encode()) as slow:
        taken = 0
        with pytest.raises(OSError):  # noqa: PT012  which of several, the kernel decides
            while True:
                slow.sendall(requests(50))
                taken += 50
                assert taken < 100_000, "never cut off"
                assert other.request([taken, 0, 0, 0]).outputs[0] == taken
        status = daemon.until(lambda status: status.connections_open == 1)
        assert status.slow_readers == 1
        assert len(until_closed(slow)) > 0, "what the kernel had taken can be read still"
    other.close()
    assert "'never reads' did not read its answers and was cut off at 100000 unsent bytes" in daemon.said()


def test_a_reader_that_is_only_late_loses_nothing(daemon: Daemon) -> None:
    with daemon.connect() as client:
        client.send_many(np.arange(40_000).reshape(10_000, 4))
        answers = client.receive_many(10_000)
        assert np.array_equal(answers["sequence"], range(10_000))
        ok = answers["status"] == Status.OK
        assert set(answers["status"][~ok]) <= {Status.BUSY}
        assert np.array_equal(answers["outputs"][ok, 0], answers["sequence"][ok] * 4)


@pytest.mark.usefixtures("witness")
def test_a_flood_of_heartbeats_does_not_keep_others_waiting(daemon: Daemon) -> None:
    with raw(daemon, Hello().encode()) as flooder:
        flooder.sendall(Heartbeat(0).encode() * 5_000)
        received = 0
        while received < 128 + 16 * 5_000:
            received += len(flooder.recv(1 << 16))


def test_who_says_no_hello_is_let_go(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), config={"hello_timeout_s": 0.1})
    with (
        daemon.connect() as served,
        raw(daemon) as silent,
        raw(daemon, Hello().encode()[:79]) as halting,
    ):
        for connection in (silent, halting):
            reject = reject_of(until_closed(connection))
            assert reject.code == RejectCode.PROTOCOL_VIOLATION
            assert reject.reason == "no Hello came within 0.1 s"
        assert served.request([5, 0, 0, 0]).outputs[0] == 5


def test_one_client_too_many(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon("--model", str(models.copied(4)), config={"connections_max": 3})
    clients = [daemon.connect() for _ in range(3)]
    for _ in range(5):
        with pytest.raises(Rejected, match="3 clients are served already") as caught:
            daemon.connect()
        assert caught.value.code == RejectCode.TOO_MANY_CONNECTIONS
    with raw(daemon):
        pass  # gone before it could be told
    clients.pop().close()
    daemon.until(lambda status: status.connections_open == 2)
    clients.append(daemon.connect())
    for client in clients:
        assert client.request([5, 0, 0, 0]).outputs[0] == 5
        client.close()


def test_churn_leaves_nothing_behind(daemon: Daemon) -> None:
    def come_and_go(number: int) -> None:
        if number % 4 == 0:
            with raw(daemon):
                return
        with daemon.connect() as client:
            if number % 4 == 1:
                return
            client.send([1, 0, 0, 0])
            if number % 4 == 2:
                client.goodbye()

    come_and_go(3)
    daemon.until(lambda status: status.connections_open == 0)
    before = daemon.descriptors()
    for number in range(200):
        come_and_go(number)
    status = daemon.until(lambda status: status.connections_open == 0)
    assert status.models[0].pending_rows == 0
    assert status.connections_accepted == 201
    deadline_s = time.monotonic() + 60
    while daemon.descriptors() > before:  # that of the last who asked goes a moment later
        assert time.monotonic() < deadline_s, "descriptors were left behind"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["clients", "admin clients"])
def test_coming_and_going_does_not_make_it_grow(daemon: Daemon, what: str) -> None:
    def once() -> None:
        if what == "admin clients":
            daemon.status()
        else:
            with daemon.connect() as client:
                client.request([1, 0, 0, 0])

    for _ in range(600):
        once()
    before = daemon.status().resident_bytes
    for _ in range(5_000):
        once()
    assert daemon.status().resident_bytes - before < 4 << 20


def test_with_few_descriptors_fewer_are_served(start_daemon: StartDaemon, models: ModelMaker) -> None:
    daemon = start_daemon(
        "--model",
        str(models.copied(4)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
    )
    assert "LimitNOFILE" in daemon.said()
    with raw(daemon, Hello().encode() + requests(1)) as first:
        assert len(first.recv(128)) == 128, "the first one is served"
        with contextlib.ExitStack() as crowd:
            for _ in range(150):
                crowd.enter_context(raw(daemon))
        daemon.until(lambda status: (status.connections_open, status.connections_accepted) == (1, 151))
    with daemon.connect() as client:
        assert client.request([5, 0, 0, 0]).outputs[0] == 5


def test_running_out_of_descriptors_is_survived(start_daemon: StartDaemon, models: ModelMaker) -> None:
    """Which takes a limit that is lowered while it serves: it lets in no more than it has descriptors for."""
    daemon = start_daemon("--model", str(models.copied(4)), "--idle", "block")
    with daemon.connect() as client:
        assert client.request([1, 0, 0, 0]).outputs[0] == 1
        _, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (daemon.descriptors() + 3, hard))
        with contextlib.ExitStack() as crowd:
            connections = [crowd.enter_context(raw(daemon)) for _ in range(20)]
            for connection in connections[3:]:
                assert until_closed(connection) == b"", (
                    "closed without a word: it has no descriptor to say it on"
                )
            before_s = daemon.cpu_s()
            time.sleep(0.3)
            assert daemon.cpu_s() - before_s < 0.15, "it spins"
            assert client.request([2, 0, 0, 0]).outputs[0] == 2
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
        with daemon.connect() as after:
            assert after.request([3, 0, 0, 0]).outputs[0] == 3


def test_a_client_that_is_killed_while_answers_are_on_their_way(
    start_daemon: StartDaemon, models: ModelMaker
) -> None:
    daemon = start_daemon("--model", str(models.slow(4, 2, layers=100)))
    with daemon.connect() as other:
        for _ in range(5):
            with raw(daemon, Hello().encode(), requests(200)):
                pass
            assert other.request([1, 0, 0, 0]).status == Status.OK
    status = daemon.until(lambda status: status.connections_open == 0)
    assert status.models[0].pending_rows == 0
    assert status.slow_readers == 0


def test_a_session_that_was_ended_says_so_to_its_client(daemon: Daemon) -> None:
    client = daemon.connect()
    os.write(client.fileno(), b"\xff" * 8)
    with pytest.raises(Rejected) as caught:
        client.receive()
    assert caught.value.code == RejectCode.UNSUPPORTED_VERSION
    with pytest.raises((Rejected, SessionClosed)):
        client.request([1, 0, 0, 0])
    client.close()


def test_admin_clients_are_told_what_is_wrong_and_hurt_no_other(daemon: Daemon) -> None:
    asked: list[Callable[[], bytes]] = [lambda: b"nonsense\n", lambda: b"x" * 10_000, lambda: b""]
    for make in asked:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(60)
            admin.connect(str(daemon.socket) + ".admin")
            admin.sendall(make())
            admin.shutdown(socket.SHUT_WR)
            assert b"error" in until_closed(admin)
    assert daemon.status().connections_open == 0
