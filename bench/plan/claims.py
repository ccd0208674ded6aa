"""The claims of the workstation's plan, one by one: what is computed confirms a claim or contradicts it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

import msgspec

from sigd.bench.plan.catalogue import FOLDER
from sigd.bench.plan.quantities import Quantity


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The plan's figure, or its two bounds, against a quantity; `agrees`: whether that has to hold them."""

    quantity: str
    planned: tuple[float, ...]
    agrees: bool


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One claim; see claims.toml."""

    number: int
    says: str
    verdict: Literal["right", "wrong", "misleading", "missing", "unclear"]
    right: str
    why: str
    source: str
    checks: tuple[Check, ...] = ()
    shown_by: str = ""
    in_unit: str = ""
    in_list: str = ""


class _Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    claims: tuple[Claim, ...]


@cache
def claims() -> tuple[Claim, ...]:
    """All claims, in order."""
    return msgspec.toml.decode((FOLDER / "claims.toml").read_bytes(), type=_Claims).claims


def right(claim: Claim, found: Mapping[str, Quantity]) -> str:
    """What is right instead, with the computed values."""
    return claim.right.format(**found)


def why(claim: Claim, found: Mapping[str, Quantity]) -> str:
    """Why, with the computed values."""
    return claim.why.format(**found)
