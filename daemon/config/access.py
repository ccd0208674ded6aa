"""The table [access]: which local users may connect."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Principal = Annotated[str, Meta(min_length=1)] | Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)]
"""A user or a group, by name or by number."""


class AccessConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table [access]. With both empty, whoever the socket's permissions let in may be a client.

    Attributes:
        users: who may connect, by name or number.
        groups: whose members may, by their primary or another group.
    """

    users: tuple[Principal, ...] = ()
    groups: tuple[Principal, ...] = ()
