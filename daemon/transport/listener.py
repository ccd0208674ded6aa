"""Opening the Unix sockets: under the right permissions from the first moment, never over a living
daemon's."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sigd.daemon.errors import AlreadyServed, MissingDependency, UsageError

BACKLOG: Final = 1024
LOCK_TIMEOUT_S: Final = 2.0
_LOCK_RETRY_S: Final = 0.01


class Listener:
    """A listening Unix socket with permissions `mode`, for use in a `with` block: leaving it removes the
    file.

    A socket left over from a daemon that is gone is replaced. The permissions are made by the umask while it
    is bound, so there is no moment at which others may connect.

    Attributes:
        socket: open from entering the block on; the server that serves it closes it.
    """

    socket: socket.socket

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._inode: int | None = None

    def __enter__(self) -> Self:
        """
        Raises:
            AlreadyServed: a daemon answers there.
            UsageError: something that is no socket stands there.
            MissingDependency: the directory is missing, or cannot be used.
        """
        directory = self._path.absolute().parent
        try:
            _make_directory(directory)
            _refuse_foreign(directory)
            with _locked(directory):
                _clear_stale(self._path)
                self.socket = _listen(self._path, self._mode)
                self._inode = self._path.stat().st_ino
        except OSError as error:
            raise MissingDependency(
                f"{self._path}: the socket cannot be made: {error.strerror}; choose another place with"
                " --socket"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
        self.socket.close()

    def remove(self) -> None:
        """Remove the socket's file, if it still is this one's: no client finds the way here any more.

        To be called while the socket is open: then no other file can have got its inode number.
        """
        inode, self._inode = self._inode, None
        try:
            if inode is not None and self._path.lstat().st_ino == inode:
                self._path.unlink()
        except FileNotFoundError:
            pass


def _listen(path: Path, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    umask = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(umask)
    return listener


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o750)
    except FileExistsError:
        if directory.is_dir():
            return
        raise UsageError(f"{directory}: the socket's directory is no directory") from None
    except OSError as error:
        raise MissingDependency(
            f"{directory}: the socket's directory is missing and cannot be made: {error.strerror}"
        ) from None


def _refuse_foreign(directory: Path) -> None:
    """Below a directory that all may write to, such as /tmp, any user can have made the socket's directory
    first, and would then own what clients connect to."""
    owner = directory.stat().st_uid
    if directory.parent.stat().st_mode & stat.S_IWOTH and owner not in (0, os.geteuid()):
        raise MissingDependency(
            f"{directory}: the socket's directory belongs to user {owner}, who could put another socket"
            " there:"
            " choose another place with --socket"
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One daemon at a time looks what stands there and puts its own socket: or of two that start at once, the
    second could take the first one's new socket for a stale one."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise MissingDependency(
                        f"{directory}: another process has held its lock for {LOCK_TIMEOUT_S:g} s (a daemon"
                        " that is"
                        " starting?): try again, or choose another place with --socket"
                    ) from None
                time.sleep(_LOCK_RETRY_S)
        yield
    finally:
        os.close(descriptor)


def _clear_stale(path: Path) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise UsageError(f"{path}: not a socket, so it is left alone: choose another place with --socket")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Never blocks: a full backlog says EAGAIN, and that is a living daemon too.
        probe.setblocking(False)
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except FileNotFoundError:
        return
    except BlockingIOError:
        pass
    except OSError as error:
        raise MissingDependency(f"{path}: cannot tell whether a daemon is there: {error.strerror}") from None
    finally:
        probe.close()
    raise AlreadyServed(
        f"{path}: a daemon is serving there already; stop it, or choose another place with --socket"
    )
