"""Asks a running daemon over its admin socket."""

from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final, Self, TypeVar

import msgspec

from sigd.daemon.admin.messages import ANSWER_TIMEOUT_S, AdminError, AdminRequest, Bins, ReloadAnswer, Status
from sigd.daemon.config.address import unit_of
from sigd.daemon.errors import DaemonError, MissingDependency

Answer = TypeVar("Answer", bound=msgspec.Struct)

_UNITS_SOCKETS: Final = Path("/run/sigd")
"""Where the sockets are the service manager's, with modes of its own."""
WAIT_STEP_S: Final = 1.0
"""After so long the user is told what is waited for."""
LOOK_STEPS: Final = 5
"""After so many steps of a long wait the daemon is asked whether it is still there."""


class AdminClient:
    """One question to a running daemon, for use in a `with` block.

    Raises:
        MissingDependency: no daemon answers there, from here on or from any call.
    """

    def __init__(self, admin_socket: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._admin_socket = admin_socket
        self._timeout_s = timeout_s
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(timeout_s)

    def __enter__(self) -> Self:
        try:
            self._connection.connect(str(self._admin_socket))
        except OSError as error:
            self._connection.close()
            raise self._lacking(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def listener_pid(self) -> int:
        """The process that listens, as the kernel says; 0 where its namespace cannot be seen from here.

        Under socket activation that is the service manager, until a daemon accepts.
        """
        try:
            credentials = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        except OSError:
            return 0
        return int.from_bytes(credentials[:4], sys.byteorder)

    def ask(
        self,
        request: AdminRequest,
        kind: type[Answer],
        *,
        bound_s: float | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Answer:
        """The answer to a question.

        Args:
            kind: of the answer.
            bound_s: how long the answer may take; without it, as long as the connection's timeout.
            meanwhile: called whenever `WAIT_STEP_S` has passed without an answer; it may raise.

        Raises:
            DaemonError: the daemon's reason why it gives none.
        """
        bound_s = self._timeout_s if bound_s is None else bound_s
        deadline_s = monotonic() + bound_s
        answer = bytearray()
        try:
            # A daemon that closes without having read the question may still have said something before.
            with suppress(BrokenPipeError):
                self._connection.sendall(msgspec.json.encode(request) + b"\n")
            with suppress(ConnectionResetError):
                while not answer.endswith(b"\n"):
                    left_s = deadline_s - monotonic()
                    if left_s <= 0:
                        raise TimeoutError
                    self._connection.settimeout(min(left_s, WAIT_STEP_S))
                    try:
                        part = self._connection.recv(1 << 16)
                    except TimeoutError:
                        meanwhile()
                        continue
                    if not part:
                        break
                    answer += part
        except TimeoutError:
            raise self._silent(request, bound_s) from None
        except OSError as error:
            raise self._lacking(error) from None
        if not answer:
            raise MissingDependency(
                f"{self._admin_socket}: the daemon has ended without an answer: see its log"
            )
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            raise _no_answer(self._admin_socket, answer, kind, error) from None

    def _silent(self, request: AdminRequest, bound_s: float) -> MissingDependency:
        found, cure = process_state(self.listener_pid)
        return MissingDependency(
            f"{self._admin_socket}: no answer to {request.op!r} within {bound_s:.3g} s (timed out): {found};"
            f" {cure}"
        )

    def _lacking(self, error: OSError) -> MissingDependency:
        if isinstance(error, PermissionError):
            if self._admin_socket.parent == _UNITS_SOCKETS:
                unit = unit_of(self._admin_socket)
                cure = f"SocketMode=0660 (systemctl edit {unit}, then systemctl restart {unit})"
            else:
                cure = 'admin_socket_mode = "0660" in its configuration'
            return MissingDependency(
                f"{self._admin_socket}: the daemon may not be asked by user {os.geteuid()}: ask as its own"
                f" user or as root, or let its group ask too, with {cure}"
            )
        if isinstance(error, (TimeoutError, BlockingIOError)):
            return MissingDependency(
                f"{self._admin_socket}: a process listens there and accepts no connection within"
                f" {self._timeout_s:.3g} s (timed out): it is stopped or hangs; systemctl status sigd, or ss"
                " -xlp, names it"
            )
        return MissingDependency(
            f"{self._admin_socket}: no daemon answers there ({error.strerror or error}); start one with: sigd"
            " serve"
        )


def process_state(pid: int) -> tuple[str, str]:
    """What a process that listens and gives no answer is doing, and what to do about it."""
    process = Path("/proc", str(pid))
    try:
        state = (process / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        name = (process / "comm").read_text("utf-8", "replace").strip()
    except (OSError, IndexError):
        gone = (
            f"process {pid}, which listens there, cannot be seen from here"
            if pid
            else "its process cannot be seen"
        )
        return gone, "see its log"
    if name == "systemd" or pid == 1:
        return (
            f"{name} (pid {pid}) listens there for a daemon that has not started yet, or fails to start",
            "systemctl status sigd and journalctl -u sigd -p err say why",
        )
    if state in "Tt":
        return f"process {pid} ({name}) is stopped", f"let it go on with: kill -CONT {pid}"
    if state in "ZX":
        return f"process {pid} ({name}) has just ended", "see its log"
    return (
        f"process {pid} ({name}) is there, in state {state}: it is starting, hangs, or is kept from its core",
        f"see its log; kill -ABRT {pid} ends it with the stack of where it hangs in the log",
    )


def ask_at_length(
    admin_socket: Path,
    request: AdminRequest,
    kind: type[Answer],
    bound_s: Callable[[Status], float],
    say: Callable[[str], None],
) -> tuple[int, Answer]:
    """Ask a question whose answer may take long; returns the daemon's pid, 0 where that cannot be seen, and
    the answer.

    The status comes first, so that a daemon that is stopped, hangs or does not start is told within seconds.
    While the answer is worked out, `say` gets what is waited for, and a daemon that stops answering for its
    status is given up.

    Args:
        bound_s: how long the answer may take, from the status.

    Raises:
        DaemonError: the daemon's reason why it gives no answer.
        MissingDependency: there is none within the bound.
    """
    bound = bound_s(ask_status(admin_socket, ANSWER_TIMEOUT_S))

    steps = itertools.count(1)

    def meanwhile() -> None:
        step = next(steps)
        if step == 1:
            say(f"waiting for the daemon, pid {pid}, to {request.op}: {bound:.3g} s at most")
        # A daemon that drains does not listen any more.
        if request.op != "drain" and step % LOOK_STEPS == 0:
            ask_status(admin_socket, ANSWER_TIMEOUT_S)

    with AdminClient(admin_socket) as client:
        pid = client.listener_pid
        return pid, client.ask(request, kind, bound_s=bound, meanwhile=meanwhile)


def tell(words: str) -> None:
    """What a command waits for; on standard error, which may be closed or full."""
    with suppress(OSError, ValueError):
        print(f"sigd: {words}", file=sys.stderr, flush=True)


def _no_answer(admin_socket: Path, answer: bytearray, kind: type, error: msgspec.DecodeError) -> DaemonError:
    """What to raise for bytes that are not an answer of that kind."""
    try:
        return DaemonError(msgspec.json.decode(answer, type=AdminError).error)
    except msgspec.DecodeError:
        return MissingDependency(f"{admin_socket}: the answer is no {kind.__name__}: {error}")


def ask_status(admin_socket: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> Status:
    """Ask a running daemon for its counters.

    Raises:
        MissingDependency: no daemon answers there.
    """
    with AdminClient(admin_socket, timeout_s) as client:
        return client.ask(AdminRequest("status"), Status)


def ask_reload(admin_socket: Path, model: Path, timeout_s: float) -> ReloadAnswer:
    """Ask a running daemon to serve another file for its first model.

    Raises:
        DaemonError: the daemon's reason why it gives no answer.
        MissingDependency: no daemon answers there.
    """
    with AdminClient(admin_socket, timeout_s) as client:
        return client.ask(AdminRequest("reload", model=str(model)), ReloadAnswer)


def percentile_ns(bins: Bins, percent: float) -> int:
    """The upper edge of the bin that holds the given percentile, 0 where nothing was counted.

    >>> percentile_ns([(128, 98), (256, 1), (1024, 1)], 99.0)
    256
    """
    rank = sum(count for _, count in bins) * percent / 100
    seen = 0
    for edge_ns, count in bins:
        seen += count
        if seen >= rank:
            return edge_ns
    return 0
