"""The arrivals of a real market as a load: as they were, and as fast as the slowest contender survives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sigd.bench.load import requests, schedule
from sigd.bench.load.schedule import NS_PER_S, Int64Array
from sigd.models.features.catalogue import FEATURE_COUNT

_STEPS: Final = (1, 2, 5)
REQUESTS_MAX: Final = 200_000
"""In a turn: at a higher speed nothing survives."""


@dataclass(frozen=True)
class Arrivals:
    """When the requests of a capture are due.

    Attributes:
        name: of its file.
        offsets_ns: int64, from the first, never falling.
    """

    name: str
    offsets_ns: Int64Array

    def busiest(self, seconds: float, speed: float) -> Int64Array:
        """The arrivals of so many seconds at that speed, from where most of them are.

        Returns:
            int64, ns from the first of them, never falling.
        """
        until = np.searchsorted(self.offsets_ns, self.offsets_ns + round(seconds * speed * NS_PER_S))
        first = int((until - np.arange(until.size)).argmax())
        return schedule.of_capture(self.offsets_ns[first : until[first]], speed)

    def speeds(self, seconds: float) -> list[float]:
        """1, 2, 5, 10 and so on, as far as a turn of so many seconds is full, and not too full."""
        return list(self._speeds(seconds))

    def _speeds(self, seconds: float) -> Iterator[float]:
        for power in range(12):
            for step in _STEPS:
                speed = float(step * 10**power)
                too_short = seconds * speed * NS_PER_S > self.offsets_ns[-1]
                if speed > 1 and (too_short or self.busiest(seconds, speed).size > REQUESTS_MAX):
                    return
                yield speed


def read_arrivals(path: Path, *, salvage: bool) -> Arrivals:
    """The arrivals of the events that give features, as `sigd bench --capture` sends them.

    Raises:
        BadRequest: the capture cannot be read, or is damaged and not to be salvaged.
    """
    arrivals_ns, _, _ = requests.capture_requests(path, FEATURE_COUNT, salvage=salvage)
    return Arrivals(path.name, schedule.of_capture(arrivals_ns, 1.0))


def fastest(survives: Callable[[float], bool], speeds: list[float]) -> float:
    """The highest of the speeds, which rise, that is survived, and all below it; the first in any case."""
    if survives(speeds[-1]):
        return speeds[-1]
    survived = speeds[0]
    for speed in speeds[:-1]:
        if not survives(speed):
            break
        survived = speed
    return survived
