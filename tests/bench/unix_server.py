"""A server in a thread on a Unix socket, for peers that are written for the tests."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


class UnixServer(threading.Thread):
    """Serves connections one after another or together, each in a thread; what it says there is `converse`.

    Args:
        path: where it listens.
        backlog: connections that may wait to be accepted.
    """

    def __init__(self, path: Path, backlog: int) -> None:
        super().__init__(daemon=True)
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(backlog)
        self._threads: list[threading.Thread] = []

    def converse(self, connection: socket.socket) -> None:
        """Talk on one connection until it ends; an OSError ends it."""
        raise NotImplementedError

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(5)
        for thread in self._threads:
            thread.join(5)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self.converse(connection)
            except OSError:
                return
