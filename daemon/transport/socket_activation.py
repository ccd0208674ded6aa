"""Listening sockets that the service manager opened: sd_listen_fds(3) as this daemon needs it.

They outlive the daemon, so a client that connects between two of its lives waits in the backlog instead of
being refused. Their files are the service manager's: nothing here removes them.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from sigd.daemon.config.address import unit_of
from sigd.daemon.config.config import Config
from sigd.daemon.errors import UsageError

CLIENTS: Final = "sigd"
ADMIN: Final = "sigd-admin"
"""FileDescriptorName= of the two sockets in their units."""

log = logging.getLogger(__name__)

_SETTINGS: Final = {CLIENTS: "socket", ADMIN: "admin_socket"}
_FIRST_DESCRIPTOR: Final = 3


class PassedListener:
    """A listening socket that was passed in; as a `with` block like `Listener`, but its file stays.

    Attributes:
        path: where it listens.
    """

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.path = Path(os.fsdecode(opened.getsockname()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def remove(self) -> None:
        """Nothing: the service manager goes on listening there."""


def take_sockets(
    environ: MutableMapping[str, str], pid: int, first_descriptor: int = _FIRST_DESCRIPTOR
) -> dict[str, PassedListener]:
    """The sockets that were passed to process `pid`, by their names; none where it was started by hand.

    The variables are taken out of the environment, and the descriptors are closed on exec, so that no child
    takes them for its own.

    Raises:
        UsageError: what was passed is not what this daemon can serve.
    """
    for_pid, count, names = (environ.pop(f"LISTEN_{part}", "") for part in ("PID", "FDS", "FDNAMES"))
    if for_pid != str(pid):
        return {}
    if not count.isdecimal():
        raise UsageError(f"LISTEN_FDS is {count!r}, expected how many sockets are passed")
    given = names.split(":") if names else []
    for name in (given + [""] * int(count))[: int(count)]:
        if name not in _SETTINGS:
            raise UsageError(
                f"a socket named {name!r} was passed, expected FileDescriptorName={CLIENTS} or"
                f" FileDescriptorName={ADMIN} in the socket's unit"
            )
        if given.count(name) > 1:
            raise UsageError(
                f"two sockets named {name!r} were passed, expected one ListenStream= in its unit"
            )
    return {name: PassedListener(_adopt(first_descriptor + index, name)) for index, name in enumerate(given)}


def place(config: Config, passed: dict[str, PassedListener]) -> Config:
    """`config` with the sockets where they were passed.

    Raises:
        UsageError: it says another place.
    """
    for name, listener in passed.items():
        setting = _SETTINGS[name]
        said = getattr(config, setting)
        if said and os.path.abspath(said) != str(listener.path):
            raise UsageError(
                f"{setting} is {said}, but the service manager listens on {listener.path}: leave {setting}"
                " out, or"
                " write the same path into ListenStream= of the socket's unit"
            )
        _warn_of_mode(setting + "_mode", getattr(config, setting + "_mode"), listener.path)
        config = msgspec.structs.replace(config, **{setting: str(listener.path)})
    return config


def _warn_of_mode(setting: str, configured: str, path: Path) -> None:
    """The mode of a socket is the service manager's business: a configured one has no effect."""
    default = getattr(Config(), setting)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if configured != default and int(configured, 8) != mode:
        log.warning(
            "%s = %s has no effect: the service manager listens on %s with mode %04o; set SocketMode=%s with"
            " `systemctl edit %s`, then `systemctl restart` that socket",
            setting,
            configured,
            path,
            mode,
            configured,
            unit_of(path),
        )


def _adopt(descriptor: int, name: str) -> socket.socket:
    """The socket behind a descriptor, if it is what can be served."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise UsageError(f"descriptor {descriptor}, passed as {name!r}, is no socket")
    except OSError as error:
        raise UsageError(f"descriptor {descriptor}, passed as {name!r}: {error.strerror}") from None
    os.set_inheritable(descriptor, False)
    opened = socket.socket(fileno=descriptor)
    opened.setblocking(False)
    wrong = ""
    if opened.family != socket.AF_UNIX or opened.type != socket.SOCK_STREAM:
        wrong = f"is {opened.family.name} {opened.type.name}"
    elif not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        wrong = "does not listen"
    elif not isinstance(opened.getsockname(), str) or not opened.getsockname():
        wrong = "has no path"
    if wrong:
        opened.close()
        raise UsageError(
            f"descriptor {descriptor}, passed as {name!r}, {wrong}; expected a Unix socket that listens:"
            " ListenStream=/path with Accept=no"
        )
    return opened
