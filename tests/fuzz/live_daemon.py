"""Spoilt streams against a `sigd serve` of its own, beside a client that behaves and must not notice."""

from __future__ import annotations

import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from tests.fuzz.conversation import Served, check, owed
from tests.fuzz.streams import Failed, demand

from sigd.daemon.admin.client import ask_status
from sigd.daemon.config.config import admin_path_of
from sigd.wire.client import connect
from sigd.wire.messages import Hello

START_S: Final = 60.0
ANSWER_S: Final = 20.0
NEIGHBOUR_ROWS: Final = 16
IDLERS_MAX: Final = 32


class LiveDaemon:
    """A context manager: starts `sigd serve`, plays streams against it, and sees that it drains and exits
    with 0.

    Attributes:
        served: what it serves.
    """

    def __init__(self, draw: random.Random, model: Path | None = None) -> None:
        """Serves `model`, or the one that ships with sigd."""
        self._draw = draw
        self._model = model
        self._idlers: list[socket.socket] = []
        self._asked = 0

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="sigd-fuzz-")
        self._path = str(Path(self._folder.name) / "sigd.sock")
        self._log = (Path(self._folder.name) / "log").open("w+")
        command = [
            sys.executable,
            "-P",
            "-m",
            "sigd.daemon",
            "serve",
            "--no-shared-memory",
            "--socket",
            self._path,
            "--idle",
            "block",
        ]
        if self._model is not None:
            command += ["--model", str(self._model)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        try:
            self._wait_until_ready()
            self._neighbour = connect(self._path, client_name="neighbour", timeout_s=ANSWER_S)
            welcome = self._neighbour.welcome
            self.served = Served(
                welcome.features,
                welcome.outputs,
                welcome.model_name,
                welcome.in_flight_max,
                doubling=False,
            )
            shape = (NEIGHBOUR_ROWS, welcome.features)
            self._rows = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
            self._known = [self._neighbour.request(row).outputs for row in self._rows]
            alike = np.allclose(self._known[:-1], self._known[1:], rtol=1e-4, atol=1e-5)
            demand(not alike, "the model answers all rows alike: a mix-up would not show")
        except BaseException:
            self._stop()
            raise
        return self

    def _wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + START_S
        while select.select([self._process.stdout], [], [], max(deadline_s - time.monotonic(), 0))[0]:
            line = self._process.stdout.readline()
            if line.startswith("sigd ready"):
                return
            demand(bool(line), f"the daemon did not start:\n{self._logged()}")
        raise Failed(f"the daemon was not ready within {START_S:g} s:\n{self._logged()}")

    def _logged(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop()
            return
        try:
            self._leave_in_order()
        finally:
            self._stop()

    def _leave_in_order(self) -> None:
        for idler in self._idlers:
            idler.close()
        self._wait_until_all_but_the_neighbour_are_gone()
        demand(len(self._neighbour.goodbye()) == 0, "the neighbour got more answers than it asked for")
        self._process.send_signal(signal.SIGTERM)
        exit_code = self._process.wait(ANSWER_S)
        logged = self._logged()
        demand(exit_code == 0, f"the daemon ended with exit code {exit_code}:\n{logged}")
        demand("Traceback" not in logged, f"the daemon caught an error of its own:\n{logged}")

    def _wait_until_all_but_the_neighbour_are_gone(self) -> None:
        """Nothing may be left of a connection that has ended."""
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            status = ask_status(admin_path_of(Path(self._path)))
            left = (status.connections_open, status.models[0].pending_rows)
            if left == (1, 0):
                return
            demand(time.monotonic() < deadline_s, f"connections and rows without an owner: {left}")
            time.sleep(0.01)

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()

    def play(self, stream: bytes) -> int:
        """One hostile connection; the neighbour asks before it ends and after. Returns the frames answered to
        it."""
        draw = self._draw
        hostile = socket.socket(socket.AF_UNIX)
        hostile.connect(self._path)
        manner = draw.choices((self._listen, self._leave, self._stay, self._drown), weights=(40, 10, 1, 0.5))[
            0
        ]
        answered = manner(hostile, stream)
        self._neighbour_asks()
        return answered

    def _listen(self, hostile: socket.socket, stream: bytes) -> int:
        """Send all, in pieces, read all that comes, and see that it is what is owed."""
        draw = self._draw
        said = bytearray()
        left = memoryview(stream)
        closed = half_closed = False
        hostile.setblocking(False)
        deadline_s = time.monotonic() + ANSWER_S
        with hostile:
            while not closed:
                demand(time.monotonic() < deadline_s, "the daemon neither answers nor closes")
                if left and draw.random() < 0.1:
                    self._neighbour_asks()
                writes = [hostile] if left else []
                readable, writable, _ = select.select([hostile], writes, [], 0.1)
                if writable:
                    try:
                        left = left[hostile.send(left[: draw.randrange(1, 5_000)]) :]
                    except (BrokenPipeError, ConnectionResetError):
                        left = left[:0]
                if not left and not half_closed:
                    half_closed = True
                    _end_sending(hostile)
                if readable:
                    part = _receive(hostile)
                    closed = not part
                    said += part
        conversation = owed(stream, self.served)
        return check(bytes(said), conversation, self.served, complete=True)

    def _leave(self, hostile: socket.socket, stream: bytes) -> int:
        """Send some and close without reading."""
        with hostile:
            hostile.setblocking(False)
            _send(hostile, stream[: self._draw.randrange(len(stream) + 1)])
        return 0

    def _stay(self, hostile: socket.socket, stream: bytes) -> int:
        """Send some, then say nothing more and never read; the oldest of those who stay leaves."""
        hostile.setblocking(False)
        _send(hostile, stream[: self._draw.randrange(len(stream) + 1)])
        self._idlers.append(hostile)
        if len(self._idlers) > IDLERS_MAX:
            self._idlers.pop(0).close()
        return 0

    def _drown(self, hostile: socket.socket, stream: bytes) -> int:
        """Send good requests and never read, until the daemon has had enough of it."""
        size = (40 + 4 * self.served.features + 7) // 8 * 8
        request = bytearray(size)
        request[:8] = bytes([(size - 8) & 0xFF, (size - 8) >> 8, 10, 0, 91, 0, 1, 0])
        hostile.setblocking(False)
        _send(hostile, Hello(client_name="drowner").encode() + stream[:0])
        with hostile:
            for _ in range(200):
                if not _send(hostile, bytes(request) * 64):
                    break
                self._neighbour_asks()
        return 0

    def _neighbour_asks(self) -> None:
        which = self._asked % NEIGHBOUR_ROWS
        self._asked += 1
        response = self._neighbour.request(self._rows[which], instrument_id=which)
        demand(response.ok, f"the neighbour got status {response.status!r}")
        same = np.allclose(response.outputs, self._known[which], rtol=1e-4, atol=1e-5)
        demand(bool(same), "the neighbour got another row's outputs")


def _send(connection: socket.socket, data: bytes) -> bool:
    """Send what fits; False where the daemon has closed or takes nothing."""
    try:
        return connection.send(data) > 0 if data else True
    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
        return False


def _end_sending(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        # It is closed on the other side already; what it said can still be read.
        pass


def _receive(connection: socket.socket) -> bytes:
    """What is there; nothing where the daemon has closed, in order or not."""
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:
        return b""
