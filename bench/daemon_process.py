"""The daemon under measurement as a process of its own: started at a socket of its own, paused, watched,
stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from sigd.bench.errors import BadRequest, BenchError, MissingDependency, PeerFailed
from sigd.daemon.runtime.process import die_with_parent
from sigd.wire.client.connect import open_connection, shake_hands
from sigd.wire.errors import ConnectFailed, HelloUnanswered, SessionError
from sigd.wire.messages import Hello, Welcome
from sigd.wire.status import HelloFlag

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 15.0
_OPEN_TIMEOUT_S = 5.0
_HELLO = Hello(client_name="sigd bench")


@dataclass(frozen=True)
class ServeOptions:
    """What `sigd serve` is started with; None leaves it the daemon's own default.

    Attributes:
        lane_cpus: cores of lanes, whose idle strategy is `lane_idle`.
    """

    model: str | None = None
    backend: str | None = None
    idle: str | None = None
    cpu: int | None = None
    record: str | None = None
    history_instruments: int | None = None
    lane_cpus: tuple[int, ...] = ()
    lane_idle: str | None = None
    dims: Mapping[str, int] = field(default_factory=dict)

    def arguments(self, socket_path: str) -> list[str]:
        """The command line after `sigd`."""
        command = ["serve", "--socket", socket_path]
        for flag, value in (
            ("--model", self.model),
            ("--backend", self.backend),
            ("--idle", self.idle),
            ("--cpu", self.cpu),
            ("--record", self.record),
            ("--history-instruments", self.history_instruments),
            *(("--lane-cpu", cpu) for cpu in self.lane_cpus),
            ("--lane-idle", self.lane_idle),
        ):
            if value is not None:
                command += [flag, str(value)]
        for name, size in self.dims.items():
            command += ["--dim", f"{name}={size}"]
        return command


class OwnDaemon:
    """`sigd serve` as a child process, for use in a `with` block; leaving the block stops it.

    Attributes:
        socket_path: where it listens.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Start it and wait until it answers.

        Raises:
            BadRequest: it refused its options or its model; the message has its words.
            MissingDependency: its backend cannot run here.
            PeerFailed: it ended, or was not ready in time.
        """
        self._directory = tempfile.TemporaryDirectory(prefix="sigd-bench-")
        self.socket_path = os.path.join(self._directory.name, "sigd.sock")
        self._said = Path(self._directory.name) / "output"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sigd.daemon", *options.arguments(self.socket_path)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                # A daemon that spins must not outlive a bench that was killed.
                preexec_fn=die_with_parent,  # noqa: PLW1509  no thread of ours runs yet, and it takes no lock
            )
        try:
            # A window may be more than one request carries.
            flags = HelloFlag.NONE if options.history_instruments is None else HelloFlag.HISTORY
            self._wait_until_ready(replace(_HELLO, flags=flags))
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def pause(self) -> None:
        """Stop it in its tracks, so that its core is free; its connections stay open."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to drain and wait for it.

        Raises:
            PeerFailed: it did not end in time, or not with exit code 0.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"the daemon did not end within {_STOP_TIMEOUT_S:.0f} s of SIGTERM") from None
        if code != 0:
            raise PeerFailed(f"the daemon ended with {code} after SIGTERM, expected 0:\n{self.said()}")

    def _wait_until_ready(self, hello: Hello) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            code = self._process.poll()
            if code is not None:
                raise self._ended(code)
            try:
                ask_welcome(self.socket_path, hello)
                return
            except ConnectFailed:
                time.sleep(0.02)
        raise PeerFailed(f"the daemon was not ready within {_START_TIMEOUT_S:.0f} s:\n{self.said()}")

    def _ended(self, code: int) -> BenchError:
        kinds: dict[int, type[BenchError]] = {2: BadRequest, 3: MissingDependency}
        return kinds.get(code, PeerFailed)(
            f"the daemon ended with {code} before it was ready:\n{self.said()}"
        )

    def said(self) -> str:
        """The end of what it has said."""
        return self._said.read_text(errors="replace")[-2000:].strip() or "it said nothing"

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()


def ask_welcome(socket_path: str, hello: Hello) -> Welcome:
    """Connect, say Hello, take the Welcome, and leave.

    Raises:
        ConnectFailed: no daemon listens there (yet), or it does not answer.
        PeerFailed: a process listens, but gives no Welcome.
    """
    with open_connection(socket_path, _OPEN_TIMEOUT_S) as connection:
        try:
            return shake_hands(connection, hello, time.monotonic() + _OPEN_TIMEOUT_S)[0]
        except HelloUnanswered as error:
            raise HelloUnanswered(f"{socket_path}: {error}") from error
        except SessionError as error:
            raise PeerFailed(f"{socket_path}: {error}") from error
