"""The client against daemons of a few lines, each of which plays one scene over a real Unix socket."""

from __future__ import annotations

import contextlib
import math
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigd.wire.client import Client, connect
from sigd.wire.dial import shake_hands
from sigd.wire.errors import (
    ConnectFailed,
    ProtocolBroken,
    ReceiveTimeout,
    Rejected,
    SessionClosed,
    SessionError,
    ShapeError,
)
from sigd.wire.inbox import RequestInbox
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome
from sigd.wire.outbox import ResponseOutbox
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, Status

FEATURES = 4
OUTPUTS = 2
REQUEST_BYTES = 56
WELCOME = Welcome(FEATURES, OUTPUTS, 256, 1, 4321, 99, bytes(range(32)), "test-model")
ROW = np.arange(FEATURES, dtype=np.float32)
MORE_THAN_ANY_BUFFER = np.ones((200_000, FEATURES), np.float32)


def newer(frame: bytes, version: int = 2, longer_bytes: int = 16) -> bytes:
    """The frame as a newer version would write it."""
    grown = bytearray(frame + b"\xee" * longer_bytes)
    struct.pack_into("<H", grown, 0, len(grown) - 8)
    struct.pack_into("<H", grown, 6, version)
    return bytes(grown)


def answer(sequence: int, outputs: tuple[float, ...] = (1, 2), status: int = 0) -> bytes:
    block = struct.pack("<QQQQIIIHH", sequence, 0, 1, 2, 0, 1, 3, status, 1)
    block += struct.pack(f"<{len(outputs)}f", *outputs)
    block += bytes(-len(block) % 8)
    return struct.pack("<HHHH", len(block), 11, 91, 1) + block


def read_exactly(connection: socket.socket, count_bytes: int) -> bytes:
    data = b""
    while len(data) < count_bytes:
        part = connection.recv(count_bytes - len(data))
        assert part, "the client closed"
        data += part
    return data


def greet(connection: socket.socket, welcome: Welcome = WELCOME) -> Hello:
    hello = Hello.decode(read_exactly(connection, 80)[8:])
    connection.sendall(welcome.encode())
    return hello


StartDaemon = Callable[[Callable[[socket.socket], None]], Path]


def echo(connection: socket.socket) -> None:
    """A daemon whose model gives the first two features; conflates nothing, expires nothing, answers everything."""
    greet(connection)
    inbox = RequestInbox(FEATURES, 64)
    outbox = ResponseOutbox(OUTPUTS, 64, 1)
    while count_bytes := connection.recv_into(inbox.writable()):
        inbox.arrived(count_bytes)
        while True:
            frame = inbox.scan(1)
            answered = inbox.rows
            while rows := min(inbox.rows, 64):
                outputs = inbox.row_features(0, rows)[:, :OUTPUTS]
                words = inbox.row_words(0, rows)
                connection.sendall(
                    outbox.encode(words, outputs, None, send_time_ns=2, infer_ns=3, batch_rows=rows)
                )
                inbox.answered(rows)
            if frame is None and not answered:
                break
            if frame is not None and frame.header.template_id == 4:
                connection.sendall(Heartbeat(777).encode())
            elif frame is not None and frame.header.template_id == 5:
                return


class TestConnect:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConnectFailed, match=r"no such socket; start the daemon \(sigd serve\)"):
            connect(tmp_path / "none.sock")

    def test_nobody_listens(self, tmp_path: Path) -> None:
        path = tmp_path / "stale.sock"
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        with pytest.raises(ConnectFailed, match="nobody listens on it"):
            connect(path)

    def test_no_socket_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("")
        with pytest.raises(ConnectFailed, match=f"cannot connect to {path}"):
            connect(path)

    def test_a_path_too_long_for_a_socket(self, tmp_path: Path) -> None:
        with pytest.raises(ConnectFailed, match="too long"):
            connect(tmp_path / ("x" * 120))

    def test_a_full_backlog_is_waited_for_and_then_given_up(self, tmp_path: Path) -> None:
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

    def test_what_is_asked_for(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            assert greet(connection) == Hello(
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
        ) as client:
            assert client.welcome == WELCOME
            assert client.unanswered == 0
            assert client.goodbye_code is None

    def test_by_default_the_models_shape_and_nothing_else(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            assert greet(connection) == Hello()

        with connect(daemon(scene)) as client:
            assert (client.welcome.features, client.welcome.outputs) == (FEATURES, OUTPUTS)

    def test_rejected(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            connection.sendall(Reject(RejectCode.UNKNOWN_MODEL, "no model is called 'x'").encode())

        with pytest.raises(Rejected, match="no model is called 'x'") as caught:
            connect(daemon(scene), model_name="x")
        assert caught.value.code == RejectCode.UNKNOWN_MODEL

    def test_rejected_by_a_daemon_that_is_full_and_reads_no_hello(self, tmp_path: Path) -> None:
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

    def test_a_newer_daemons_longer_welcome(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            read_exactly(connection, 80)
            connection.sendall(newer(WELCOME.encode(), version=9, longer_bytes=64))

        with connect(daemon(scene)) as client:
            assert client.welcome == WELCOME

    def test_a_welcome_that_comes_byte_by_byte_with_more_behind_it(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            read_exactly(connection, 80)
            for byte in WELCOME.encode()[:-1]:
                connection.sendall(bytes([byte]))
            connection.sendall(WELCOME.encode()[-1:] + Goodbye(GoodbyeCode.DRAINING).encode())

        with connect(daemon(scene)) as client:
            with pytest.raises(SessionClosed):
                client.receive()
            assert client.goodbye_code == GoodbyeCode.DRAINING

    @pytest.mark.parametrize(
        ("granted", "message"),
        [
            (Welcome(5, 2, 1, 1, 1, 1, bytes(32), ""), "asked for 4 features, the daemon granted 5"),
            (Welcome(4, 0, 1, 1, 1, 1, bytes(32), ""), "asked for any outputs, the daemon granted 0"),
            (
                Welcome(4, 2, 1, 1, 1, 1, bytes(32), "", transport=1),
                "asked for transport 0, the daemon granted 1",
            ),
        ],
    )
    def test_a_welcome_that_grants_something_else(
        self, daemon: StartDaemon, granted: Welcome, message: str
    ) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection, granted)

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
    def test_no_welcome(
        self, daemon: StartDaemon, reply: bytes, error: type[SessionError], message: str
    ) -> None:
        def scene(connection: socket.socket) -> None:
            read_exactly(connection, 80)
            connection.sendall(reply)

        with pytest.raises(error, match=message):
            connect(daemon(scene))

    def test_a_daemon_that_closes_without_reading(self, daemon: StartDaemon) -> None:
        """Its end of the socket is reset, not closed in order."""

        def scene(connection: socket.socket) -> None:
            connection.recv(1)

        with pytest.raises(SessionClosed, match="before"):
            connect(daemon(scene))

    def test_a_silent_daemon(self, daemon: StartDaemon) -> None:
        done = threading.Event()

        def scene(_: socket.socket) -> None:
            done.wait(10)

        path = daemon(scene)
        with pytest.raises(ReceiveTimeout, match="did not answer Hello"):
            connect(path, timeout_s=0.02)
        done.set()

    def test_a_model_name_that_hello_would_cut(self, tmp_path: Path) -> None:
        with pytest.raises(ShapeError, match="has 33 bytes, expected at most 32"):
            connect(tmp_path / "none", model_name="m" * 33)

    @pytest.mark.parametrize("features", [-1, 2**32])
    def test_a_number_that_hello_cannot_carry(self, tmp_path: Path, features: int) -> None:
        with pytest.raises(ShapeError, match=f"features of {features}, expected a number within"):
            connect(tmp_path / "none", features=features)


class TestRequests:
    @pytest.mark.parametrize("spin", [False, True])
    def test_one_by_one(self, daemon: StartDaemon, spin: bool) -> None:
        with connect(daemon(echo), spin=spin) as client:
            for turn in range(3):
                before_ns = time.monotonic_ns()
                response = client.request(ROW + turn, instrument_id=turn)
                assert response.outputs.tolist() == [turn, turn + 1]
                assert (response.sequence, response.instrument_id, response.status) == (turn, turn, Status.OK)
                assert before_ns <= response.client_time_ns <= time.monotonic_ns()
                assert (response.receive_time_ns, response.send_time_ns) == (1, 2)
                assert (response.infer_ns, response.batch_rows, response.model_generation) == (3, 1, 1)
                assert client.unanswered == 0

    def test_what_is_sent(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            assert struct.unpack("<HHHHQQQIHH4f", read_exactly(connection, 56)) == (
                *(48, 10, 91, 1),
                *(7, 8, 9, 10, 0, 0),
                *(0, 1, 2, 3),
            )
            assert struct.unpack("<8xQ40x", read_exactly(connection, 56)) == (8,)

        with connect(daemon(scene)) as client:
            assert client.send(ROW, sequence=7, client_time_ns=8, deadline_ns=9, instrument_id=10) == 7
            assert client.send(ROW) == 8
            assert client.unanswered == 2
            with pytest.raises(SessionClosed):
                client.receive()

    def test_pipelined(self, daemon: StartDaemon) -> None:
        with connect(daemon(echo)) as client:
            sequences = [client.send(ROW * turn) for turn in range(100)]
            assert client.unanswered == 100
            for turn, sequence in enumerate(sequences):
                response = client.receive()
                assert (response.sequence, response.outputs.tolist()) == (sequence, [0, turn])
            assert client.unanswered == 0

    def test_many_at_once(self, daemon: StartDaemon) -> None:
        rows = np.random.default_rng(1).standard_normal((1000, FEATURES)).astype(np.float32)
        with connect(daemon(echo)) as client:
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

    def test_lone_and_many_share_one_book(self, daemon: StartDaemon) -> None:
        with connect(daemon(echo)) as client:
            client.send(ROW)
            assert client.send_many(np.ones((3, FEATURES))).tolist() == [1, 2, 3]
            assert client.send(ROW) == 4
            assert client.receive().sequence == 0
            assert client.receive_many(2)["sequence"].tolist() == [1, 2]
            assert [client.receive().sequence for _ in range(2)] == [3, 4]

    def test_nothing_to_send(self, daemon: StartDaemon) -> None:
        with connect(daemon(echo)) as client:
            assert client.send_many(np.empty((0, FEATURES))).tolist() == []
            assert client.unanswered == 0
            assert len(client.receive_many(0)) == 0

    def test_what_has_come_so_far(self, daemon: StartDaemon) -> None:
        may_go_on = threading.Event()

        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 3 * REQUEST_BYTES)
            connection.sendall(answer(0) + answer(1))
            assert may_go_on.wait(10)
            connection.sendall(answer(2))

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((3, FEATURES)))
            assert client.receive_many()["sequence"].tolist() == [0, 1]
            may_go_on.set()
            assert client.receive_many()["sequence"].tolist() == [2]

    def test_more_than_all_buffers_hold(self, daemon: StartDaemon) -> None:
        """The daemon stops reading while nobody reads its answers: who only sends would wait for ever."""
        rows = np.arange(60_000 * FEATURES, dtype=np.float32).reshape(-1, FEATURES)
        with connect(daemon(echo)) as client:
            client.send_many(rows)
            assert client.unanswered == 60_000
            answers = client.receive_many(60_000)
            assert np.array_equal(answers["outputs"], rows[:, :2])

    def test_one_by_one_more_than_all_buffers_hold(self, daemon: StartDaemon) -> None:
        with connect(daemon(echo)) as client:
            for _ in range(20_000):
                client.send(ROW)
            assert client.receive_many(20_000)["sequence"].tolist() == list(range(20_000))

    def test_a_newer_daemons_longer_answers(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 5 * REQUEST_BYTES)
            stream = (
                answer(0) + newer(answer(1)) + newer(answer(2)) + newer(Heartbeat(1).encode()) + answer(3)
            )
            for start in range(0, len(stream), 100):
                connection.sendall(stream[start : start + 100])
            connection.sendall(newer(answer(4), version=3, longer_bytes=1024))

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((5, FEATURES)))
            answers = client.receive_many(5)
            assert answers["sequence"].tolist() == [0, 1, 2, 3, 4]
            assert answers["outputs"].tolist() == [[1, 2]] * 5

    def test_statuses_are_answers_not_errors(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            for sequence, status in enumerate([*Status, 55]):
                read_exactly(connection, REQUEST_BYTES)
                connection.sendall(answer(sequence, (math.nan, math.nan), status))

        with connect(daemon(scene)) as client:
            for status in Status:
                response = client.request(ROW)
                assert response.status is status
                assert response.ok == (status is Status.OK)
            assert client.request(ROW).status == 55

    def test_a_request_among_unanswered_ones_would_get_anothers_answer(self, daemon: StartDaemon) -> None:
        with connect(daemon(echo)) as client:
            client.send(ROW)
            with pytest.raises(RuntimeError, match="1 requests are unanswered, expected none"):
                client.request(ROW)
            client.receive()
            assert client.request(ROW).sequence == 1

    def test_wrong_shapes_and_numbers_send_nothing(self, daemon: StartDaemon) -> None:
        with connect(daemon(echo)) as client:
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


class TestWaiting:
    def test_a_late_answer_still_comes(self, daemon: StartDaemon) -> None:
        may_answer = threading.Event()

        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, REQUEST_BYTES)
            connection.sendall(answer(0)[:30])
            assert may_answer.wait(10)
            connection.sendall(answer(0)[30:])

        with connect(daemon(scene)) as client:
            client.send(ROW)
            for timeout_s in (0, 0.01):
                with pytest.raises(ReceiveTimeout, match=r"0 of 1 answers came .* 1 requests are unanswered"):
                    client.receive(timeout_s)
            may_answer.set()
            assert client.receive(math.inf).sequence == 0

    def test_answers_that_came_are_kept_when_others_did_not(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 3 * REQUEST_BYTES)
            connection.sendall(answer(0) + answer(1))
            assert connection.recv(16)[2] == 5

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((3, FEATURES)))
            assert client.receive().sequence == 0
            with pytest.raises(ReceiveTimeout, match="1 of 2 answers came"):
                client.receive_many(2, timeout_s=0.02)
            assert client.receive_many(1)["sequence"].tolist() == [1]
            assert client.unanswered == 1

    def test_the_sessions_own_timeout(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            connection.recv(16)

        with connect(daemon(scene), timeout_s=0.02) as client, pytest.raises(ReceiveTimeout):
            client.receive()

    def test_a_daemon_that_reads_nothing(self, daemon: StartDaemon) -> None:
        done = threading.Event()

        def scene(connection: socket.socket) -> None:
            greet(connection)
            assert done.wait(10)

        with connect(daemon(scene), timeout_s=0.05) as client:
            with pytest.raises(SessionClosed, match=r"took no bytes for 0\.05 s; .* unanswered") as caught:
                client.send_many(MORE_THAN_ANY_BUFFER)
            assert caught.value.unanswered == client.unanswered > 0
            with pytest.raises(SessionClosed, match="took no bytes"):
                client.send(ROW)
        done.set()

    def test_a_daemon_that_closes_while_the_client_waits_for_room(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 100 * REQUEST_BYTES)
            connection.sendall(answer(0) + Reject(RejectCode.PROTOCOL_VIOLATION, "enough").encode())

        with connect(daemon(scene)) as client:
            with pytest.raises(Rejected, match="enough"):
                client.send_many(MORE_THAN_ANY_BUFFER)
            assert client.receive().sequence == 0
            assert client.fileno() == -1

    def test_a_send_that_was_interrupted_half_way_ends_the_session(self, daemon: StartDaemon) -> None:
        done = threading.Event()
        main_thread = threading.get_ident()

        def scene(connection: socket.socket) -> None:
            greet(connection)
            arrived_bytes = -1
            while arrived_bytes != (arrived_bytes := len(connection.recv(1 << 24, socket.MSG_PEEK))):
                assert not done.wait(0.02)
            # the client waits for room in the middle of a frame
            signal.pthread_kill(main_thread, signal.SIGALRM)
            assert done.wait(10)

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with connect(daemon(scene)) as client:
                with pytest.raises(KeyboardInterrupt):
                    client.send_many(MORE_THAN_ANY_BUFFER)
                with pytest.raises(SessionClosed, match="a send was broken off"):
                    client.send(ROW)
        finally:
            signal.signal(signal.SIGALRM, before)
            done.set()


class TestEnds:
    def test_closed_with_requests_unanswered(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 3 * REQUEST_BYTES)
            connection.sendall(answer(0))

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((3, FEATURES)))
            assert client.receive().sequence == 0
            for _ in range(2):
                with pytest.raises(SessionClosed, match="2 requests are unanswered") as caught:
                    client.receive()
                assert caught.value.unanswered == 2

    def test_what_came_before_the_end_can_be_taken(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 2 * REQUEST_BYTES)
            connection.sendall(answer(0) + Reject(RejectCode.MALFORMED_FRAME, "odd").encode())

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((2, FEATURES)))
            assert client.receive().sequence == 0
            for ask in (client.receive, client.receive_many, client.heartbeat, lambda: client.send(ROW)):
                with pytest.raises(Rejected, match="odd"):
                    ask()

    def test_sending_to_a_daemon_that_rejected_and_closed_says_why(self, daemon: StartDaemon) -> None:
        closed = threading.Event()

        def scene(connection: socket.socket) -> None:
            greet(connection)
            connection.sendall(Reject(RejectCode.PROTOCOL_VIOLATION, "enough").encode())
            connection.close()
            closed.set()

        with connect(daemon(scene)) as client:
            assert closed.wait(10)
            with pytest.raises(Rejected, match="enough"):
                client.send(ROW)

    def test_sending_to_a_daemon_that_closed(self, daemon: StartDaemon) -> None:
        closed = threading.Event()

        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 2 * REQUEST_BYTES)
            connection.sendall(answer(0))
            connection.close()
            closed.set()

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((2, FEATURES)))
            assert closed.wait(10)
            with pytest.raises(SessionClosed, match="2 requests are unanswered") as caught:
                client.send(ROW)
            assert caught.value.unanswered == 2, "one of the three was answered"
            assert client.receive().sequence == 0

    def test_closed_by_a_daemon_that_left_requests_unread(self, daemon: StartDaemon) -> None:
        """The kernel resets such a connection; what the daemon said before is still there."""

        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, REQUEST_BYTES)
            connection.sendall(answer(0))
            connection.recv(REQUEST_BYTES, socket.MSG_PEEK)

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
    def test_a_daemon_that_breaks_the_contract(self, daemon: StartDaemon, reply: bytes, message: str) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, REQUEST_BYTES)
            connection.sendall(reply)

        with connect(daemon(scene)) as client:
            client.send(ROW)
            for _ in range(2):
                with pytest.raises(ProtocolBroken, match=message):
                    client.receive()
            with pytest.raises(ProtocolBroken, match=message):
                client.send(ROW)

    def test_an_answer_that_nobody_asked_for(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            connection.sendall(answer(0))

        with connect(daemon(scene)) as client, pytest.raises(ProtocolBroken, match="0, which nobody asked"):
            client.receive_many()

    def test_answers_in_the_wrong_order_among_many(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 3 * REQUEST_BYTES)
            connection.sendall(answer(0) + answer(2) + answer(1))

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((3, FEATURES)))
            with pytest.raises(ProtocolBroken, match="answered sequence 2, expected 1"):
                client.receive_many(3)

    def test_closing_says_goodbye(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            assert connection.recv(100) == Goodbye(GoodbyeCode.DONE).encode()
            assert connection.recv(100) == b""

        with connect(daemon(scene)) as client:
            assert client.fileno() >= 0
        client.close()
        assert client.fileno() == -1
        for ask in (client.receive, lambda: client.send(ROW), client.heartbeat, client.goodbye):
            with pytest.raises(SessionClosed, match="this client was closed"):
                ask()

    def test_closing_after_the_daemon_is_gone(self, daemon: StartDaemon) -> None:
        closed = threading.Event()

        def scene(connection: socket.socket) -> None:
            greet(connection)
            connection.close()
            closed.set()

        with connect(daemon(scene)):
            assert closed.wait(10)


class TestControl:
    def test_a_heartbeat_is_answered_and_answers_meanwhile_are_kept(self, daemon: StartDaemon) -> None:
        with connect(daemon(echo)) as client:
            client.send_many(np.ones((3, FEATURES)))
            assert client.heartbeat() == 777
            assert client.heartbeat() == 777
            assert client.receive_many(3)["sequence"].tolist() == [0, 1, 2]

    def test_no_sign_of_life(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            assert Heartbeat.decode(read_exactly(connection, 16)[8:]).clock_ns > 0
            connection.recv(16)

        with connect(daemon(scene)) as client, pytest.raises(ReceiveTimeout, match="no Heartbeat came back"):
            client.heartbeat(timeout_s=0.02)

    def test_heartbeats_of_the_daemons_own_are_no_answers(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, REQUEST_BYTES)
            connection.sendall(Heartbeat(1).encode() + Heartbeat(2).encode() + answer(0))

        with connect(daemon(scene)) as client:
            assert client.request(ROW).sequence == 0

    def test_goodbye_collects_what_is_unanswered(self, daemon: StartDaemon) -> None:
        with connect(daemon(echo)) as client:
            client.send_many(np.ones((5, FEATURES)))
            client.receive()
            assert client.goodbye()["sequence"].tolist() == [1, 2, 3, 4]
            assert client.fileno() == -1

    def test_goodbye_to_a_daemon_that_leaves_requests_unanswered(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 2 * REQUEST_BYTES + 16)
            connection.sendall(answer(0) + Goodbye().encode())

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((2, FEATURES)))
            with pytest.raises(SessionClosed, match="1 requests are unanswered") as caught:
                client.goodbye()
            assert caught.value.unanswered == 1
            assert client.receive().sequence == 0, "what came can still be taken"

    def test_goodbye_to_a_daemon_that_rejects(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 16)
            connection.sendall(Reject(RejectCode.PROTOCOL_VIOLATION, "not like this").encode())

        with connect(daemon(scene)) as client, pytest.raises(Rejected, match="not like this"):
            client.goodbye()

    def test_goodbye_to_a_daemon_that_has_just_drained(self, daemon: StartDaemon) -> None:
        closed = threading.Event()

        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 2 * REQUEST_BYTES)
            connection.sendall(Goodbye(GoodbyeCode.DRAINING).encode() + answer(0) + answer(1))
            connection.close()
            closed.set()

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((2, FEATURES)))
            assert closed.wait(10)
            assert client.goodbye()["sequence"].tolist() == [0, 1]
            assert client.goodbye_code == GoodbyeCode.DRAINING

    def test_goodbye_to_a_daemon_that_does_not_go(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 16)
            connection.recv(16)

        with (
            connect(daemon(scene)) as client,
            pytest.raises(ReceiveTimeout, match="did not close the connection after Goodbye"),
        ):
            client.goodbye(timeout_s=0.02)

    def test_the_daemons_goodbye_is_noted_and_answers_go_on(self, daemon: StartDaemon) -> None:
        def scene(connection: socket.socket) -> None:
            greet(connection)
            read_exactly(connection, 2 * REQUEST_BYTES)
            connection.sendall(answer(0) + Goodbye(GoodbyeCode.MODEL_WITHDRAWN).encode() + answer(1))

        with connect(daemon(scene)) as client:
            client.send_many(np.ones((2, FEATURES)))
            assert client.receive_many(2)["sequence"].tolist() == [0, 1]
            assert client.goodbye_code == GoodbyeCode.MODEL_WITHDRAWN
            with pytest.raises(SessionClosed, match="0 requests are unanswered"):
                client.receive()


def test_a_session_leaves_no_descriptor_open(daemon: StartDaemon) -> None:
    """Where connect() fails half way, the socket is closed: an open one would be a ResourceWarning, an error here."""

    def scene(connection: socket.socket) -> None:
        connection.sendall(Reject(1, "").encode())

    with pytest.raises(Rejected):
        connect(daemon(scene))


def test_every_public_call_says_what_it_raises() -> None:
    for name, value in vars(Client).items():
        if callable(value) and not name.startswith("_") and name not in ("close", "fileno"):
            assert value.__doc__ is not None
            assert "Raises" in value.__doc__ or name == "request", name
