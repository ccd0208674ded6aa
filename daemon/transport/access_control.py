"""Who may connect. A peer is known by what the kernel keeps of it (SO_PEERCRED), never by what it says.

The credentials are those of the process that called connect(), at that moment: they cost one call when a
connection is accepted, and nothing for a request.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from sigd.daemon.config.access import AccessConfig

_SO_PEERGROUPS: Final = 59
"""From Linux 4.13 on; not among the names of Python's socket module."""
_GROUPS_MAX: Final = 65_536
"""Linux's NGROUPS_MAX: what one process may be in. Python's getsockopt() would end at 256 of them."""
_CREDENTIALS: Final = struct.Struct("@iII")
_libc = ctypes.CDLL(None)


class Credentials(NamedTuple):
    """Of the process at the other end, as they were when it connected."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Access:
    """The rule, with names looked up.

    Root and the daemon's own user are always let in: either could replace the daemon, so that refusing them
    would protect nothing.

    Attributes:
        expected: the rule in words, for a client that is refused; "" where all are let in.
    """

    users: frozenset[int]
    groups: frozenset[int]
    expected: str

    def admits(self, peer: Credentials, descriptor: int) -> bool:
        """Whether the peer at the other end of that socket may be a client."""
        if not self.expected or peer.uid in self.users or peer.gid in self.groups:
            return True
        return bool(self.groups) and not self.groups.isdisjoint(peer_groups(descriptor))


def access_of(config: AccessConfig) -> Access:
    """Look up the names of `config`.

    Raises:
        UsageError: there is no such user or group here.
    """
    users, groups = config.numbers()
    expected = " or ".join(
        f"{what} {','.join(map(str, names))}"
        for what, names in (("user", config.users), ("group", config.groups))
        if names
    )
    return Access(users | {0, os.geteuid()}, groups, expected)


def credentials_of(connection: socket.socket) -> Credentials:
    """Those of the peer at the other end of a connected Unix socket."""
    return Credentials(
        *_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    )


def peer_groups(descriptor: int) -> frozenset[int]:
    """The supplementary groups of the peer. Asked of the kernel, which never waits for a directory service as
    a look-up of the user would; none where a kernel does not tell."""
    groups = (ctypes.c_uint32 * _GROUPS_MAX)()
    size = ctypes.c_uint32(ctypes.sizeof(groups))
    failed = _libc.getsockopt(descriptor, socket.SOL_SOCKET, _SO_PEERGROUPS, groups, ctypes.byref(size))
    return frozenset() if failed else frozenset(groups[: size.value // ctypes.sizeof(ctypes.c_uint32)])
