"""What contenders are asked with: the same schedule for each, from a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sigd.bench.alternatives.capture import Arrivals
from sigd.bench.load import schedule
from sigd.bench.load.contract import LoadPlan
from sigd.bench.load.schedule import NS_PER_S, Int64Array

RATE_TOGETHER: Final = 16
"""Requests that may be unanswered at a rate: connections of a client's pool, or calls of one connection."""
WARMUP_S: Final = 0.3
_BEHIND_S: Final = 1.0
"""A contender that lies so far behind a rate has missed it: the rest of the turn would only take time."""
FAST_TITLE: Final = "as fast as the slowest survives"
_SAMPLES_MAX: Final = 4096


@dataclass(frozen=True)
class Load:
    """One load.

    Attributes:
        name: stable: what results are found by.
        title: for tables.
        together: requests that may be unanswered at once.
        rate_hz: Poisson arrivals; 0 where it is no rate.
        bursts_hz: bursts of `together` a second; 0 where it is no burst.
        offsets_ns: the arrivals of a turn, where they are a capture's.
    """

    name: str
    title: str
    together: int = 1
    rate_hz: float = 0.0
    bursts_hz: float = 0.0
    offsets_ns: Int64Array | None = None

    @property
    def closed(self) -> bool:
        """Whether each request waits for the answer before it."""
        return not self.rate_hz and not self.bursts_hz and self.offsets_ns is None

    def plan(
        self,
        base: LoadPlan,
        frames: npt.NDArray[np.uint8],
        expected: npt.NDArray[np.float32] | None,
        duration_s: float,
        seed: int,
    ) -> LoadPlan:
        """The plan of one turn."""
        warmup_ns = round(WARMUP_S * NS_PER_S)
        plan = replace(
            base, frames=frames, expected=expected, seed=seed, warmup_ns=warmup_ns, samples_max=_SAMPLES_MAX
        )
        if self.closed:
            return replace(plan, duration_ns=round(duration_s * NS_PER_S))
        return replace(
            plan,
            intended_ns=schedule.with_warmup(self._offsets(duration_s, seed), warmup_ns),
            behind_ns=round(_BEHIND_S * NS_PER_S),
        )

    def _offsets(self, duration_s: float, seed: int) -> Int64Array:
        if self.offsets_ns is not None:
            return self.offsets_ns
        if self.bursts_hz:
            return schedule.bursts(self.together, self.bursts_hz, duration_s)
        return schedule.poisson(self.rate_hz, duration_s, seed)


CLOSED: Final = Load("closed", "one after the other")


def capture_load(arrivals: Arrivals, speed: float, seconds: float) -> Load:
    """The busiest seconds of a capture at its own speed, or at a higher one."""
    name, how = ("capture-1x", "as they were") if speed == 1 else ("capture-fast", FAST_TITLE)
    offsets_ns = arrivals.busiest(seconds, speed)
    return Load(name, f"{arrivals.name}, {how}", RATE_TOGETHER, offsets_ns=offsets_ns)


def loads(rates_hz: tuple[float, ...], bursts: tuple[int, ...]) -> list[Load]:
    """The closed loop, then the rates, then the bursts, as many of these a second as make 1,000 requests."""
    return [
        CLOSED,
        *(Load(f"rate-{rate:g}", f"{rate:,.0f} a second", RATE_TOGETHER, rate_hz=rate) for rate in rates_hz),
        *(
            Load(f"burst-{size}", f"bursts of {size}", size, bursts_hz=max(2.0, 1000 / size))
            for size in bursts
        ),
    ]
