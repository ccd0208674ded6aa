"""The admin socket against its clients."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from sigd.daemon.admin import client as client_module
from sigd.daemon.admin import messages as admin_module
from sigd.daemon.admin.client import AdminClient, ask_at_length, ask_status
from sigd.daemon.admin.messages import AdminRequest, LatencyStatus, LoopStatus, ModelStatus, Status
from sigd.daemon.admin.server import CLIENTS_MAX, AdminServer, Op
from sigd.daemon.errors import DaemonError, MissingDependency

STATUS = Status(
    version="1",
    pid=1,
    uptime_ns=2,
    socket="/s",
    idle="spin",
    clients=["engine"],
    transports={"stream": 1},
    connections_open=1,
    connections_accepted=2,
    heartbeats=0,
    slow_readers=0,
    resident_bytes=1,
    rejects={},
    loop=LoopStatus(100, 0, 0, 0, 0, 0, 0.5, 10, 0, 20, 1, 0.0),
    models=[
        ModelStatus(
            name="m",
            path="/m.onnx",
            sha256="00",
            generation=1,
            features=64,
            outputs=3,
            backend="onnxruntime",
            batch_rows_max=64,
            pending_rows=0,
            waiting_rows=0,
            answers={"OK": 5},
            batches_by_rows={1: 5},
            total=LatencyStatus([(128, 5)], 100),
            queue=LatencyStatus([(128, 5)], 100),
            infer=LatencyStatus([], 0),
        )
    ],
)


async def _status(_request: AdminRequest) -> Status:
    return STATUS


def serve(
    folder: Path,
    ask: Callable[[Path], None],
    *,
    timeout_s: float = 5.0,
    ops: Mapping[str, Op] | None = None,
    every_s: float = 0.0,
) -> None:
    """Let `ask`, in a thread, ask a server."""
    path = folder / "a"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(100)
            listener.setblocking(False)
            server = AdminServer(ops or {"status": _status}, timeout_s=timeout_s, every_s=every_s)
            await server.start(listener)
            try:
                await asyncio.to_thread(ask, path)
            finally:
                server.close()

    uvloop.run(main())


def say(path: Path, line: bytes) -> bytes:
    """All that comes back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
        return answer


def test_status_comes_back_as_it_was_given(tmp_path: Path) -> None:
    def ask(path: Path) -> None:
        assert ask_status(path) == STATUS
        assert ask_status(path) == STATUS
        assert say(path, b'{"op": "status"}') == msgspec.json.encode(STATUS) + b"\n", "without the line's end"

    serve(tmp_path, ask)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"status\n", "expected one JSON line"),
        (b"{}\n", "`op`"),
        (b'{"op": 1}\n', "expected one JSON line"),
        (b'{"op": "statsu"}\n', "unknown op 'statsu', expected: status"),
        (b'{"op": "status", "verbose": true}\n', "`verbose`"),
        (b"\xff\xfe\n", "expected one JSON line"),
        (b'{"op": "\xff"}\n', "expected one JSON line"),
        (b"[" * 4000 + b"\n", "expected one JSON line"),
        (b"\n", "expected one JSON line"),
        (b'{"op": "' + b"x" * 5000 + b'"}\n', "more than 4096 bytes"),
        (b"", "expected one JSON line"),
    ],
)
def test_what_is_no_question_is_told_so(tmp_path: Path, line: bytes, said: str) -> None:
    def ask(path: Path) -> None:
        assert said in json.loads(say(path, line))["error"]
        assert ask_status(path) == STATUS, "the next one is answered all the same"

    serve(tmp_path, ask)


def test_who_keeps_silent_is_let_go(tmp_path: Path) -> None:
    def ask(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            assert ask_status(path) == STATUS, "others are answered meanwhile"
            silent.settimeout(20)
            assert silent.recv(1) == b""

    serve(tmp_path, ask, timeout_s=0.1)


def test_who_does_not_take_the_answer_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = msgspec.structs.replace(STATUS, clients=["engine"] * 100_000)
    monkeypatch.setattr(AdminServer, "_answer", lambda *_: _ready())

    async def _ready() -> bytes:
        return msgspec.json.encode(long) + b"\n"

    def ask(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(path))
            admin.sendall(b'{"op": "status"}\n')
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(path))
                other.sendall(b'{"op": "status"}\n')
                assert ask_status(path) == long

    serve(tmp_path, ask, timeout_s=0.2)


def test_too_many_at_once_are_turned_away(tmp_path: Path) -> None:
    def ask(path: Path) -> None:
        waiting = []
        for _ in range(CLIENTS_MAX):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            waiting.append(connection)
        assert say(path, b"") == b""
        waiting[0].close()
        while not say(path, b'{"op": "status"}\n'):
            pass
        for connection in waiting[1:]:
            connection.close()

    serve(tmp_path, ask)


def test_who_asks_without_end_waits_between_two_questions(tmp_path: Path) -> None:
    def ask(path: Path) -> None:
        began_s = time.monotonic()
        for _ in range(4):
            assert ask_status(path) == STATUS
        assert time.monotonic() - began_s >= 0.3

    serve(tmp_path, ask, every_s=0.1)


def test_one_who_cannot_be_accepted_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]
    open_connection = asyncio.open_connection

    async def failing_once(**options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if failures:
            raise failures.pop()
        return await open_connection(**options)

    def ask(path: Path) -> None:
        with pytest.raises(MissingDependency):
            ask_status(path)
        assert ask_status(path) == STATUS

    monkeypatch.setattr(asyncio, "open_connection", failing_once)
    serve(tmp_path, ask, every_s=0.01)
    assert "an admin client cannot be answered: [Errno 24] Too many open files" in caplog.text


def test_asking_where_no_daemon_answers(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="sigd serve"):
        ask_status(tmp_path / "none")


@pytest.mark.parametrize("reads", ["the question", "nothing", "nothing, and closes before it is asked"])
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "has ended without an answer"),
        (b"hello\n", "the answer is no Status"),
        (b'{"error": "not now"}\n', "^not now$"),
        (b"{}", "the answer is no Status"),
    ],
)
def test_asking_a_process_that_is_no_daemon(tmp_path: Path, answer: bytes, said: str, reads: str) -> None:
    """Whatever they said before they closed is told, also where the kernel makes an error of the unread
    question."""
    path = tmp_path / "a"
    closed = threading.Event()

    def answer_it(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            if reads != "nothing, and closes before it is asked":
                connection.recv(1 << 16, socket.MSG_PEEK if reads == "nothing" else 0)
            connection.sendall(answer)
        closed.set()

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(1) as other:
        listener.bind(str(path))
        listener.listen()
        answered = other.submit(answer_it, listener)
        with AdminClient(path) as admin:
            if reads == "nothing, and closes before it is asked":
                assert closed.wait(60)
            with pytest.raises(DaemonError, match=said):
                admin.ask(AdminRequest("status"), Status)
        answered.result()


def test_asking_a_daemon_that_hangs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a"))
        listener.listen()
        with pytest.raises(MissingDependency, match="timed out"):
            ask_status(tmp_path / "a", timeout_s=0.05)
    assert admin_module.ANSWER_TIMEOUT_S > 0.05


def test_an_answer_may_take_longer_than_a_question(tmp_path: Path) -> None:
    async def _slow(_request: AdminRequest) -> Status:
        await asyncio.sleep(0.3)
        return STATUS

    def ask(path: Path) -> None:
        with AdminClient(path, timeout_s=0.1) as admin:
            assert admin.ask(AdminRequest("slow"), Status, bound_s=60.0) == STATUS
        with AdminClient(path, timeout_s=0.1) as admin, pytest.raises(MissingDependency, match="timed out"):
            admin.ask(AdminRequest("slow"), Status)

    serve(tmp_path, ask, timeout_s=0.1, ops={"slow": _slow})


def test_long_question_to_a_silent_daemon_ends_before_it_is_asked(tmp_path: Path) -> None:
    """A daemon that is stopped does not answer for its status: no `drain` is left in its queue for later."""
    said: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "a"))
        listener.listen()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client_module, "ANSWER_TIMEOUT_S", 0.05)
            with pytest.raises(MissingDependency, match=rf"(?s)'status' within .*process {os.getpid()} \("):
                ask_at_length(tmp_path / "a", AdminRequest("drain"), Status, lambda _: 60.0, said.append)
        listener.setblocking(False)
        connection, _ = listener.accept()
        with connection:
            assert json.loads(connection.recv(4096)) == {"op": "status"}
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert said == []


def test_long_answer_is_bounded_and_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def _never(_request: AdminRequest) -> Status:
        await asyncio.Event().wait()
        raise AssertionError

    said: list[str] = []
    monkeypatch.setattr(client_module, "WAIT_STEP_S", 0.02)

    def ask(path: Path) -> None:
        with pytest.raises(MissingDependency, match=r"no answer to 'reload' within 0\.2 s"):
            ask_at_length(path, AdminRequest("reload"), Status, lambda _: 0.2, said.append)

    serve(tmp_path, ask, ops={"status": _status, "reload": _never})
    assert said == [f"waiting for the daemon, pid {os.getpid()}, to reload: 0.2 s at most"]


def test_daemon_that_hangs_during_a_long_question_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers for its status once, and then no more."""
    asked = itertools.count()

    async def _once(_request: AdminRequest) -> Status:
        if next(asked):
            await asyncio.Event().wait()
        return STATUS

    async def _never(_request: AdminRequest) -> Status:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(client_module, "WAIT_STEP_S", 0.02)
    monkeypatch.setattr(client_module, "ANSWER_TIMEOUT_S", 0.3)

    def ask(path: Path) -> None:
        with pytest.raises(MissingDependency, match=r"no answer to 'status' within 0\.3 s"):
            ask_at_length(path, AdminRequest("reload"), Status, lambda _: 3600.0, lambda _: None)

    serve(tmp_path, ask, ops={"status": _once, "reload": _never})


@pytest.mark.parametrize(
    ("signal_sent", "found"), [(signal.SIGSTOP, "is stopped"), (signal.SIGKILL, "has just ended")]
)
def test_state_of_a_silent_process_is_named_with_its_cure(signal_sent: signal.Signals, found: str) -> None:
    process = subprocess.Popen(["sleep", "600"])
    try:
        process.send_signal(signal_sent)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        words, cure = client_module.process_state(process.pid)
        assert found in words
        assert str(process.pid) in words
        assert cure == (
            f"let it go on with: kill -CONT {process.pid}" if found == "is stopped" else "see its log"
        )
    finally:
        process.kill()
        process.wait()
    assert "cannot be seen" in client_module.process_state(0)[0]


def test_why_it_is_not_done(tmp_path: Path) -> None:
    async def _refuse(request: AdminRequest) -> Status:
        raise DaemonError(f"{request.name} is not to be had")

    def ask(path: Path) -> None:
        with AdminClient(path) as admin, pytest.raises(DaemonError, match=r"^x is not to be had$"):
            admin.ask(AdminRequest("refuse", name="x"), Status)

    serve(tmp_path, ask, ops={"refuse": _refuse})


def test_who_answers_is_known_from_the_kernel(tmp_path: Path) -> None:
    def ask(path: Path) -> None:
        with AdminClient(path) as admin:
            assert admin.listener_pid == os.getpid()
            admin.ask(AdminRequest("status"), Status)

    serve(tmp_path, ask)


def test_the_last_answers_are_waited_for(tmp_path: Path) -> None:
    """As for `sigd drain`, whose answer is the last thing that a daemon does; who has asked nothing is not
    waited for."""
    ended: asyncio.Event
    answers: list[Status] = []

    async def _last(_request: AdminRequest) -> Status:
        await ended.wait()
        return STATUS

    async def main() -> None:
        nonlocal ended
        ended = asyncio.Event()
        path = tmp_path / "a"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as silent:
            listener.bind(str(path))
            listener.listen(100)
            server = AdminServer({"last": _last})
            await server.start(listener)
            silent.connect(str(path))

            def ask() -> None:
                with AdminClient(path) as admin:
                    answers.append(admin.ask(AdminRequest("last"), Status, bound_s=60.0))

            asking = asyncio.create_task(asyncio.to_thread(ask))
            # Nothing outside tells that the server has read the question and not answered yet.
            while not server._answering:
                await asyncio.sleep(0.001)
            server.close()
            ended.set()
            await server.finish(60.0)
            await asking

    uvloop.run(main())
    assert answers == [STATUS]
