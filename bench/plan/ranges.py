"""A value with its bounds: what is computed from figures that are themselves known within bounds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Low, best and high, in one unit that the name of the variable gives; low <= best <= high."""

    low: float
    best: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.best <= self.high:
            raise ValueError(f"a range from {self.low} over {self.best} to {self.high} is not in order")

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.best + other.best, self.high + other.high)

    def times(self, factor: float) -> Range:
        """Scaled by a factor of 0 or more."""
        return Range(self.low * factor, self.best * factor, self.high * factor)

    def inverse(self, numerator: float = 1.0) -> Range:
        """numerator / self; self is above 0."""
        return Range(numerator / self.high, numerator / self.best, numerator / self.low)


def exactly(value: float) -> Range:
    """A range of one value."""
    return Range(value, value, value)


NOTHING = exactly(0.0)
