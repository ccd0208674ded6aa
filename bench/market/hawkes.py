"""Bursty arrival times: a Hawkes process, in which every event makes further ones likelier for a while.

The intensity is lambda(t) = base + the sum over past events i and kernels k of n_k * b_k * exp(-b_k * (t -
t_i)), with n_k the mean number of children that one event has through kernel k and 1 / b_k their mean delay
(Hawkes, "Spectra of some self-exciting and mutually exciting point processes", Biometrika 58, 1971).
Exponential kernels make it Markov, so times are drawn one by one with Ogata's thinning ("On Lewis' simulation
method for point processes", IEEE Transactions on Information Theory 27, 1981).

The default is fitted by hand to 345 s of a BTC futures feed: 272 events a second on average, a median gap of
3.5 us, and up to 182 events within a millisecond and 2,527 within a second.
`python -m sigd.bench.market.hawkes` prints how near it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to have children.

    Attributes:
        children: mean number for each event.
        delay_s: their mean delay.
    """

    children: float
    delay_s: float


@dataclass(frozen=True, slots=True)
class Burstiness:
    """A Hawkes process. Its mean rate is base_hz / (1 - the sum of `children`), which must stay below 1."""

    base_hz: float
    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        if self.branching >= 1:
            raise ValueError(
                f"{self.branching:g} children for each event, expected below 1: it would explode"
            )

    @property
    def branching(self) -> float:
        """Mean number of children of one event, over all kernels."""
        return sum(kernel.children for kernel in self.kernels)


CRYPTO_FUTURES = Burstiness(
    base_hz=272 * (1 - 0.945),
    kernels=(Kernel(0.615, 3e-6), Kernel(0.15, 300e-6), Kernel(0.18, 0.25)),
)


def arrival_times_ns(burstiness: Burstiness, seed: int) -> Iterator[int]:
    """Arrival times from 0 on, without end, never decreasing; the same for the same seed."""
    draw = random.Random(seed)
    decays = [1 / kernel.delay_s for kernel in burstiness.kernels]
    jumps = [kernel.children / kernel.delay_s for kernel in burstiness.kernels]
    excited = [0.0] * len(decays)
    time_s = 0.0
    while True:
        # The intensity only falls until the next event, so what it is now bounds it until then.
        bound = burstiness.base_hz + sum(excited)
        wait_s = draw.expovariate(bound)
        time_s += wait_s
        excited = [level * math.exp(-decay * wait_s) for level, decay in zip(excited, decays, strict=True)]
        if draw.random() * bound <= burstiness.base_hz + sum(excited):
            excited = [level + jump for level, jump in zip(excited, jumps, strict=True)]
            yield int(time_s * NS_PER_S)


@dataclass(frozen=True, slots=True)
class ArrivalStatistics:
    """What burstiness looks like: mean rate, median gap, most events within a millisecond and within a
    second."""

    mean_hz: float
    median_gap_us: float
    most_in_1_ms: int
    most_in_1_s: int


def arrival_statistics(times_ns: npt.NDArray[np.int64]) -> ArrivalStatistics:
    """Of arrival times in ns, shape (n,), n >= 2, ascending."""
    return ArrivalStatistics(
        mean_hz=(len(times_ns) - 1) * NS_PER_S / float(times_ns[-1] - times_ns[0]),
        median_gap_us=float(np.median(np.diff(times_ns))) / 1e3,
        most_in_1_ms=_most_within(times_ns, NS_PER_S // 1000),
        most_in_1_s=_most_within(times_ns, NS_PER_S),
    )


def _most_within(times_ns: npt.NDArray[np.int64], window_ns: int) -> int:
    ends = np.searchsorted(times_ns, times_ns + window_ns, side="left")
    return int((ends - np.arange(len(times_ns))).max())


def _main() -> None:
    for seed in range(5):
        times: list[int] = []
        for time_ns in arrival_times_ns(CRYPTO_FUTURES, seed):
            if time_ns > 345 * NS_PER_S:
                break
            times.append(time_ns)
        print(f"seed {seed}: {arrival_statistics(np.array(times, np.int64))}")


if __name__ == "__main__":
    _main()
