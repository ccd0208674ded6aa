"""What is judged, and how: a need against a limit, both with their bounds."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from sigd.bench.plan.ranges import Range

Level = Literal["fits", "tight", "does not fit"]
LEVELS: tuple[Level, ...] = ("does not fit", "tight", "fits")


class Harm(enum.IntEnum):
    """What comes of it when it is left as it is; the worst has the highest number."""

    UNCERTAIN = 1
    SLOWER = 2
    WRONG_PART = 3
    DOES_NOT_START = 4
    LATE_SIGNALS = 5
    MACHINE_STOPS = 6
    DAMAGE = 7


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the plan.

    Attributes:
        area: memory, speed, power, ...
        subject: what is judged.
        need: in `unit`, low, best and high; None where the judgement is not about a quantity.
        limit: in `unit`.
        why: what was found and what was expected.
        fix: what to change; empty where it fits.
        harm: see Harm; orders what has to change.
    """

    area: str
    subject: str
    level: Level
    why: str
    fix: str = ""
    harm: int = Harm.UNCERTAIN
    unit: str = ""
    need: Range | None = None
    limit: Range | None = None


def judge(need: Range, limit: Range) -> Level:
    """Fits where the highest need is within the lowest limit; does not where the lowest need is over the
    highest."""
    if need.high <= limit.low:
        return "fits"
    return "does not fit" if need.low > limit.high else "tight"


def reaches(value: Range, wanted: float) -> Level:
    """The same for a speed: fits where its lowest is at least what is wanted."""
    if value.low >= wanted:
        return "fits"
    return "does not fit" if value.high < wanted else "tight"


def in_order(verdicts: list[Verdict]) -> list[Verdict]:
    """Those to be changed first: what does not fit before what is tight, and the most harmful first."""
    return sorted(verdicts, key=lambda one: (LEVELS.index(one.level), -one.harm))
