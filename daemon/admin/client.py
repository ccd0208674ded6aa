"""Asks a running daemon over its admin socket."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from sigd.daemon.admin.messages import ANSWER_TIMEOUT_S, AdminError, AdminRequest, Bins, Status
from sigd.daemon.errors import DaemonError, MissingDependency

Answer = TypeVar("Answer", bound=msgspec.Struct)


class AdminClient:
    """Whoever asks a running daemon, for use in a `with` block.

    Raises:
        MissingDependency: nobody answers there, from here on or from any call.
    """

    def __init__(self, admin_socket: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._admin_socket = admin_socket
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
    def daemon_pid(self) -> int:
        """The kernel's word on who answers; 0 where it is in a namespace that cannot be seen from here."""
        credentials = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder)

    def ask(self, request: AdminRequest, kind: type[Answer], *, patiently: bool = False) -> Answer:
        """The answer to a question.

        Args:
            kind: of the answer.
            patiently: it may take as long as it takes.

        Raises:
            DaemonError: the daemon's reason why it gives none.
        """
        answer = bytearray()
        try:
            # Who closes without having read the question may still have said something before.
            with suppress(BrokenPipeError):
                self._connection.sendall(msgspec.json.encode(request) + b"\n")
            if patiently:
                self._connection.settimeout(None)
            with suppress(ConnectionResetError):
                while not answer.endswith(b"\n") and (part := self._connection.recv(1 << 16)):
                    answer += part
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

    def _lacking(self, error: OSError) -> MissingDependency:
        if isinstance(error, PermissionError):
            return MissingDependency(
                f"{self._admin_socket}: the daemon may not be asked by user {os.geteuid()}: ask as its own"
                " user or as root,"
                ' or let its group ask too, with admin_socket_mode = "0660" in its configuration'
            )
        return MissingDependency(
            f"{self._admin_socket}: no daemon answers there ({error.strerror or error}); start one with: sigd"
            " serve"
        )


def _no_answer(admin_socket: Path, answer: bytearray, kind: type, error: msgspec.DecodeError) -> DaemonError:
    """What to raise for bytes that are not an answer of that kind."""
    try:
        return DaemonError(msgspec.json.decode(answer, type=AdminError).error)
    except msgspec.DecodeError:
        return MissingDependency(f"{admin_socket}: the answer is no {kind.__name__}: {error}")


def ask_status(admin_socket: Path, timeout_s: float = ANSWER_TIMEOUT_S) -> Status:
    """Ask a running daemon for its counters.

    Raises:
        MissingDependency: nobody answers there.
    """
    with AdminClient(admin_socket, timeout_s) as asker:
        return asker.ask(AdminRequest("status"), Status)


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
