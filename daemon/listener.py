"""Opening the Unix sockets: under the right permissions from the first moment, never over a living daemon's."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from sigd.daemon.errors import AlreadyServed, EnvironmentLacks, UsageError

BACKLOG = 1024


def open_listener(path: Path, mode: int) -> socket.socket:
    """A listening stream socket at `path` with permissions `mode`.

    A socket left over from a daemon that is gone is replaced. The permissions are made by the umask while it is
    bound, so there is no moment at which others may connect.

    Raises:
        AlreadyServed: somebody answers there.
        UsageError: something that is no socket stands there.
        EnvironmentLacks: the directory is missing or may not be written to.
    """
    _make_directory(path.parent)
    _clear_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    umask = os.umask(0o777 & ~mode)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise EnvironmentLacks(
            f"{path}: the socket cannot be made: {error.strerror}; choose another place with --socket"
        ) from None
    finally:
        os.umask(umask)
    listener.listen(BACKLOG)
    return listener


def remove_socket(path: Path, listener_inode: int) -> None:
    """Remove the socket file, if it still is the one that was made with this inode."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == listener_inode:
            path.unlink()


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    try:
        directory.mkdir(mode=0o750)
    except OSError as error:
        raise EnvironmentLacks(
            f"{directory}: the socket's directory is missing and cannot be made: {error.strerror}"
        ) from None


def _clear_stale(path: Path) -> None:
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise UsageError(f"{path}: something that is no socket stands there; it is left alone")
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
        raise EnvironmentLacks(f"{path}: cannot tell whether a daemon is there: {error.strerror}") from None
    finally:
        probe.close()
    raise AlreadyServed(
        f"{path}: a daemon is serving there already; stop it, or choose another place with --socket"
    )
