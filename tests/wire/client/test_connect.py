"""How a client gets to its Welcome, and what each failure on the way means."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.wire.client.lines import FEATURES, OUTPUTS, WELCOME, Line, newer, shared_welcome

from sigd.wire.client import connect
from sigd.wire.client.connect import shake_hands
from sigd.wire.errors import (
    ConnectFailed,
    ProtocolBroken,
    ReceiveTimeout,
    Rejected,
    SessionClosed,
    SessionError,
    ShapeError,
)
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode

if TYPE_CHECKING:
    from tests.wire.client.conftest import Dial, StartDaemon

SHARED = "shared memory"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ConnectFailed, match=r"no such socket; start the daemon \(sigd serve\)"):
        connect(tmp_path / "none.sock")


def test_no_daemon_listens(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with pytest.raises(ConnectFailed, match="no daemon listens on it"):
        connect(path)


def test_no_socket_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(ConnectFailed, match=f"cannot connect to {path}"):
        connect(path)


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(ConnectFailed, match="too long"):
        connect(tmp_path / ("x" * 120))


def test_a_full_backlog_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(path)
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(10):
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(path)
        with pytest.raises(ConnectFailed, match="did not accept the connection in time"):
            connect(path, timeout_s=0.02)
        handler = signal.signal(signal.SIGALRM, lambda *_: None)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
            with pytest.raises(ConnectFailed, match="did not accept the connection in time"):
                connect(path, timeout_s=0.02)  # signals interrupt it all the while
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)


def test_what_is_asked_for(daemon: StartDaemon, transport: str) -> None:
    def scene(line: Line) -> None:
        assert line.greet() == Hello(
            transport=transport == SHARED,
            ring_slots=16 * (transport == SHARED),
            features=FEATURES,
            outputs=OUTPUTS,
            flags=HelloFlag.CONFLATE,
            client_name="engine-7",
            model_name="test-model",
        )

    with connect(
        daemon(scene),
        features=FEATURES,
        outputs=OUTPUTS,
        model_name="test-model",
        client_name="engine-7",
        conflate=True,
        shared_memory=transport == SHARED,
        ring_slots=16 * (transport == SHARED),
    ) as client:
        assert client.welcome == (shared_welcome() if transport == SHARED else WELCOME)
        assert client.unanswered == 0
        assert client.goodbye_code is None


def test_by_default_the_models_shape_and_nothing_else(daemon: StartDaemon) -> None:
    def scene(line: Line) -> None:
        assert line.greet() == Hello()

    with connect(daemon(scene)) as client:
        assert (client.welcome.features, client.welcome.outputs) == (FEATURES, OUTPUTS)


def test_rejected(dial: Dial) -> None:
    def scene(line: Line) -> None:
        line.send(Reject(RejectCode.UNKNOWN_MODEL, "no model is called 'x'").encode())

    with pytest.raises(Rejected, match="no model is called 'x'") as caught:
        dial(scene, model_name="x")
    assert caught.value.code == RejectCode.UNKNOWN_MODEL


def test_rejected_by_a_daemon_that_is_full_and_reads_no_hello(tmp_path: Path) -> None:
    """The connection is closed before Hello goes out; why stands in what the daemon left to read."""
    path = str(tmp_path / "full.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def reject() -> None:
            connection, _ = listener.accept()
            connection.sendall(Reject(RejectCode.TOO_MANY_CONNECTIONS, "64 are open").encode())
            connection.close()

        thread = threading.Thread(target=reject)
        thread.start()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        thread.join()
        with connection, pytest.raises(Rejected, match="64 are open"):
            shake_hands(connection, Hello(), time.monotonic() + 10)


def test_a_newer_daemons_longer_welcome(daemon: StartDaemon) -> None:
    def scene(line: Line) -> None:
        line.read_control(80)
        line.send(newer(WELCOME.encode(), version=9, longer_bytes=64))

    with connect(daemon(scene)) as client:
        assert client.welcome == WELCOME


def test_a_welcome_that_comes_byte_by_byte_with_more_behind_it(daemon: StartDaemon) -> None:
    def scene(line: Line) -> None:
        line.read_control(80)
        for byte in WELCOME.encode()[:-1]:
            line.send(bytes([byte]))
        line.send(WELCOME.encode()[-1:] + Goodbye(GoodbyeCode.DRAINING).encode())

    with connect(daemon(scene)) as client:
        with pytest.raises(SessionClosed):
            client.receive()
        assert client.goodbye_code == GoodbyeCode.DRAINING


@pytest.mark.parametrize(
    ("granted", "message"),
    [
        (Welcome(5, 2, 1, 1, 1, 1, bytes(32), ""), "asked for 4 features, the daemon granted 5"),
        (Welcome(4, 0, 1, 1, 1, 1, bytes(32), ""), "asked for any outputs, the daemon granted 0"),
        (Welcome(4, 65_536, 1, 1, 1, 1, bytes(32), ""), "asked for any outputs, the daemon granted 65536"),
        (
            Welcome(4, 2, 1, 1, 1, 1, bytes(32), "", transport=1),
            "asked for transport 0, the daemon granted 1",
        ),
    ],
)
def test_a_welcome_that_grants_something_else(daemon: StartDaemon, granted: Welcome, message: str) -> None:
    def scene(line: Line) -> None:
        line.hello()
        line.send(granted.encode())

    with pytest.raises(ProtocolBroken, match=message):
        connect(daemon(scene), features=4)


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (b"", SessionClosed, "closed the connection before its Welcome"),
        (WELCOME.encode()[:100], SessionClosed, "closed the connection before its Welcome"),
        (Heartbeat(1).encode(), ProtocolBroken, "answered Hello with template 4, expected Welcome"),
        (b"HTTP/1.1 400 Bad Request\r\n", ProtocolBroken, "no valid frame: schema"),
        (b"\xff" + WELCOME.encode()[1:], ProtocolBroken, "Welcome of 263 bytes|multiple of 8"),
        (WELCOME.encode()[:-1] + b"\xff", ProtocolBroken, "model_name is not UTF-8"),
    ],
)
def test_no_welcome(dial: Dial, reply: bytes, error: type[SessionError], message: str) -> None:
    def scene(line: Line) -> None:
        line.read_control(80)
        line.send(reply)

    with pytest.raises(error, match=message):
        dial(scene)


def test_a_daemon_that_closes_without_reading(dial: Dial) -> None:
    """Its end of the socket is reset, not closed in order."""

    def scene(line: Line) -> None:
        line.connection.recv(1)

    with pytest.raises(SessionClosed, match="before"):
        dial(scene)


def test_a_silent_daemon(dial: Dial) -> None:
    done = threading.Event()

    def scene(_: Line) -> None:
        done.wait(10)

    with pytest.raises(ReceiveTimeout, match="did not answer Hello") as caught:
        dial(scene, timeout_s=0.02)
    assert isinstance(caught.value, ConnectFailed), "no session began"
    done.set()


def test_a_model_name_that_hello_would_cut(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="has 33 bytes, expected at most 32"):
        connect(tmp_path / "none", model_name="m" * 33)


@pytest.mark.parametrize("features", [-1, 2**32])
def test_a_number_that_hello_cannot_carry(tmp_path: Path, features: int) -> None:
    with pytest.raises(ShapeError, match=f"features of {features}, expected a number within"):
        connect(tmp_path / "none", features=features)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"shared_memory": True, "ring_slots": 3},
            "ring_slots of 3, expected a power of two within 1..65536",
        ),
        ({"shared_memory": True, "ring_slots": 1 << 17}, "ring_slots of 131072, expected a power of two"),
        ({"shared_memory": True, "ring_slots": -4}, "ring_slots of -4, expected a power of two"),
        ({"ring_slots": 8}, "ring_slots of 8 on a stream, expected 0"),
    ],
)
def test_slots_that_no_ring_has(tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        connect(tmp_path / "none", **asked)
