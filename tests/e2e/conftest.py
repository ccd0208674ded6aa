"""A real `sigd serve` process on a socket of the test's own. What it says on standard error is looked at in
the end."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx.reference
import pytest

from sigd.daemon.admin.client import ask_status
from sigd.daemon.admin.messages import Status
from sigd.daemon.config.config import admin_path_of
from sigd.wire.client import Client, connect
from sigd.wire.status import Status as AnswerStatus

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

PATIENCE_S = 60.0
"""How long anything may take before the test gives up; no test waits for it."""

Float32Array = npt.NDArray[np.float32]


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("sigd", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(self._path))


class Daemon:
    """A daemon as a child process.

    Attributes:
        ready: the line that it said.
        expected_log: words that may stand on its standard error; "Traceback" never may, unless it is among
            them.
    """

    def __init__(
        self, folder: Path, *arguments: str, config: dict[str, Any] | None = None, **popen: Any
    ) -> None:
        self.folder = folder
        self.socket = folder / "sigd.sock"
        self.errors = folder / "stderr"
        if config:
            lines = [f"{name} = {str(value).lower()}" for name, value in config.items()]
            (folder / "sigd.toml").write_text("\n".join(lines))
            arguments = ("--config", str(folder / "sigd.toml"), *arguments)
        popen.setdefault("stdout", subprocess.PIPE)
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "sigd.daemon",
                    "serve",
                    "--socket",
                    str(self.socket),
                    *arguments,
                ],
                stdin=subprocess.DEVNULL,
                stderr=errors,
                **popen,
            )
        self.ready = ""

    def wait_until_ready(self) -> None:
        """Take the line that says so."""
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline().decode()
        assert self.ready.startswith("sigd ready: "), self.said()

    def connect(self, **asked: Any) -> Client:
        return connect(self.socket, **{"timeout_s": PATIENCE_S, **asked})

    def status(self) -> Status:
        return ask_status(admin_path_of(self.socket))

    def get(self, path: str, *, tcp: bool = False) -> tuple[int, str]:
        """Status and body of a page, on the admin socket or on the port that it said when it was ready."""
        connection: http.client.HTTPConnection = _UnixConnection(admin_path_of(self.socket))
        if tcp:
            found = re.search(r"metrics=http://(.*):(\d+)/metrics", self.ready)
            assert found, self.ready
            connection = http.client.HTTPConnection(found[1].strip("[]"), int(found[2]), timeout=PATIENCE_S)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body

    def metrics(self) -> str:
        """A scrape."""
        status, body = self.get("/metrics")
        assert status == 200, body
        return body

    def until(self, condition: Callable[[Status], bool]) -> Status:
        """Ask for the status until it is as wanted."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            status = self.status()
            if condition(status):
                return status
            assert time.monotonic() < deadline_s, status
            time.sleep(0.005)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_s(self) -> float:
        """Processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE_S)

    def said(self) -> str:
        return self.errors.read_text()

    def give_up(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


StartDaemon = Callable[..., Daemon]


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts daemons: (*flags, config={...}, folder=..., ready=True) -> Daemon. At the end each is drained,
    if the test has not ended it, and nothing that was not foreseen may stand on its standard error."""
    daemons: list[Daemon] = []

    def start(*arguments: str, folder: Path | None = None, ready: bool = True, **options: Any) -> Daemon:
        folder = folder or tmp_path / f"daemon-{len(daemons)}"
        folder.mkdir(exist_ok=True)
        daemon = Daemon(folder, *arguments, **options)
        daemons.append(daemon)
        if ready:
            daemon.wait_until_ready()
        return daemon

    try:
        yield start
        for daemon in daemons:
            if daemon.process.poll() is None:
                assert daemon.stop() == 0, daemon.said()
                assert not daemon.socket.exists()
        for daemon in daemons:
            said = daemon.said()
            for word in ("Traceback", "Warning:", "Exception ignored", "CRITICAL"):
                assert word not in said, said
    finally:
        for daemon in daemons:
            daemon.give_up()


@pytest.fixture
def daemon(start_daemon: StartDaemon, models: ModelMaker) -> Daemon:
    """One that copies four features."""
    return start_daemon("--model", str(models.copied(4)))


@pytest.fixture
def witness(daemon: Daemon) -> Iterator[Client]:
    """A client that minds its own business, and is served well to the end."""
    started, stop = threading.Event(), threading.Event()
    answered: list[float] = []

    def mind_its_business() -> None:
        with daemon.connect(client_name="witness") as client:
            number = 0
            while not stop.is_set():
                number += 1
                answer = client.request([number, 0, 0, 0])
                assert answer.status == AnswerStatus.OK
                assert answer.outputs[0] == number
                answered.append(number)
                started.set()

    thread = threading.Thread(target=mind_its_business)
    thread.start()
    assert started.wait(60)
    with daemon.connect() as client:
        yield client
        assert client.request([1, 2, 3, 4]).outputs.tolist() == [1, 2, 3, 4]
    stop.set()
    thread.join()
    assert answered == list(range(1, len(answered) + 1)), "the witness was let down"


@pytest.fixture(scope="session")
def oracle() -> Callable[[Path, Float32Array], Float32Array]:
    """What a model answers, by the ONNX reference evaluator: (path, rows) -> outputs."""

    def run(path: Path, rows: Float32Array) -> Float32Array:
        (outputs,) = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"features": rows})
        return np.asarray(outputs, np.float32)

    return run
