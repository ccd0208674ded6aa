"""A server that is measured, as a child process with all that it starts."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from sigd.bench.errors import PeerFailed
from sigd.daemon.runtime.process import die_with_parent

START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 10.0
_SAID_BYTES: Final = 600


class ServerProcess:
    """For use in a `with` block; leaving it ends the process and its descendants.

    Args:
        command: what to run.
        folder: for its output.
        cpus: the cores that it may use; empty is all.
        environment: added to the caller's own.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, cpus: Sequence[int], environment: dict[str, str]
    ) -> None:
        self._said = folder / "output"

        def begin() -> None:
            die_with_parent()
            if cpus:
                os.sched_setaffinity(0, cpus)

        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=inherited | environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=begin,  # noqa: PLW1509  no thread of ours runs yet, and it takes no lock
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        started = descendants(self._process.pid)
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in started:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """
        Raises:
            PeerFailed: it ended, or was not ready in time; the message has its last words.
        """
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            code = self._process.poll()
            if code is not None:
                raise PeerFailed(f"the server ended with {code} before it was ready: {self._tail()}")
            with suppress(OSError, http.client.HTTPException):
                if ready():
                    return
            time.sleep(0.1)
        raise PeerFailed(f"the server was not ready within {START_TIMEOUT_S:.0f} s: {self._tail()}")

    def _tail(self) -> str:
        return self._said.read_text(errors="replace")[-_SAID_BYTES:].strip() or "it said nothing"


def descendants(pid: int) -> list[int]:
    """All processes that it started, and that those started."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            after_name = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(after_name[1]), []).append(int(stat.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in parents.get(parent, ())]
        found += new
    return found


def answers(address: str, request: bytes) -> bool:
    """Whether the server answers that HTTP request with 200.

    Raises:
        OSError: it cannot be reached (yet).
    """
    with connected(address) as connection:
        connection.sendall(request)
        return connection.recv(64).startswith(b"HTTP/1.1 200")


def listens(address: str) -> bool:
    """Whether a connection can be made.

    Raises:
        OSError: not yet.
    """
    with connected(address):
        return True


def connected(address: str) -> socket.socket:
    """A connection to the path of a Unix socket, or to 127.0.0.1:PORT.

    Raises:
        OSError: it cannot be reached (yet).
    """
    local = address.startswith("/")
    connection = socket.socket(socket.AF_UNIX if local else socket.AF_INET)
    connection.settimeout(10)
    try:
        if local:
            connection.connect(address)
        else:
            host, _, port = address.rpartition(":")
            connection.connect((host, int(port)))
    except BaseException:
        connection.close()
        raise
    return connection


def free_port() -> int:
    """A port of the loopback that no process listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
