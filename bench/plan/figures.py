"""A figure with its unit, its source and how far the source is trusted. A figure without them is refused."""

from __future__ import annotations

import itertools
from typing import Literal

import msgspec

from sigd.bench.plan.ranges import Range

Grade = Literal["P", "S", "C", "G"]
GRADES: dict[Grade, str] = {
    "P": "read at its source",
    "S": "quoted from its source by another page",
    "C": "computed; the source column says how",
    "G": "general knowledge, not looked up",
}


class Figure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """[value, unit, grade, source] in a table of figures, or [value, unit, grade, source, low, high].

    Attributes:
        source: a key of the table's [sources], or the words that say how the value was computed.
        low, high: the bounds; without them the value is exact.
    """

    value: float
    unit: str
    grade: Grade
    source: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not self.unit.strip():
            raise ValueError(f"the figure {self.value} has no unit")
        if not self.source.strip():
            raise ValueError(f"the figure {self.value} {self.unit} has no source")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"the figure {self.value} {self.unit} has one bound: give both, or none")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"the figure {self.value} {self.unit} is not within {self.low} to {self.high}")

    @property
    def range(self) -> Range:
        """The value with its bounds."""
        if self.low is None or self.high is None:
            return Range(self.value, self.value, self.value)
        return Range(self.low, self.value, self.high)


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Speed at a power limit, for one kind of work.

    Attributes:
        points: (watts, speed), the watts ascending, the speed never falling.
    """

    unit: str
    grade: Grade
    source: str
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.unit.strip() or not self.source.strip():
            raise ValueError("a curve needs a unit and a source")
        if len(self.points) < 2 or list(self.points) != sorted(self.points):
            raise ValueError("a curve needs two points or more, the watts ascending")
        speeds = [speed for _, speed in self.points]
        if speeds != sorted(speeds):
            raise ValueError("a curve may not fall where the limit rises")

    def at(self, limit_w: float) -> float:
        """Speed at a limit: straight between two points, flat above the last; below the first in proportion
        to the limit, which is more than a card keeps there."""
        first_w, first = self.points[0]
        if limit_w <= first_w:
            return first * limit_w / first_w
        for (left_w, left), (right_w, right) in itertools.pairwise(self.points):
            if limit_w <= right_w:
                return left + (right - left) * (limit_w - left_w) / (right_w - left_w)
        return self.points[-1][1]

    def share(self, limit_w: float, full_w: float) -> float:
        """The share of the speed at full_w that is left at limit_w; 1 where the limit is no limit."""
        return min(1.0, self.at(limit_w) / self.at(full_w))
