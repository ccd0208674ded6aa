"""The table [access]: which local users may connect."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from sigd.daemon.errors import UsageError

Principal = Annotated[str, Meta(min_length=1)] | Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)]
"""A user or a group, by name or by number."""


class AccessConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table [access]. With both empty, every user that the socket's permissions let in may be a client.

    Attributes:
        users: those that may connect, by name or number.
        groups: whose members may, by their primary or another group.
    """

    users: tuple[Principal, ...] = ()
    groups: tuple[Principal, ...] = ()

    def numbers(self) -> tuple[frozenset[int], frozenset[int]]:
        """The numbers of the users and of the groups.

        Raises:
            UsageError: this machine does not know a name.
        """
        return (
            _numbers("users", self.users, lambda name: pwd.getpwnam(name).pw_uid),
            _numbers("groups", self.groups, lambda name: grp.getgrnam(name).gr_gid),
        )


def _numbers(name: str, principals: Iterable[str | int], number_of: Callable[[str], int]) -> frozenset[int]:
    numbers = set()
    for principal in principals:
        try:
            numbers.add(principal if isinstance(principal, int) else number_of(principal))
        except KeyError:
            raise UsageError(
                f"access.{name}: there is no {principal!r} on this machine, expected a name that it knows, or"
                " a number"
                " without quotes"
            ) from None
    return frozenset(numbers)
