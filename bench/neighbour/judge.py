"""Whether a neighbour makes answers slower: pairs of blocks, their ratios, and a test that noise does not
pass.

Pure: percentiles in, a verdict out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache
from typing import Final

import msgspec

RATIO_MIN: Final = 1.25
"""A smaller ratio is within what a quiet machine does to its own blocks."""
CHANCE_MAX: Final = 0.001
"""Of a verdict where the neighbour does nothing: below this is a slowdown."""
PERCENTILES: Final = {"p50": "p50_us", "p99": "p99_us", "p99.9": "p99_9_us"}
"""Name to the field of a Block."""


class Block(msgspec.Struct, frozen=True):
    """Percentiles of one block, in us."""

    p50_us: float
    p99_us: float
    p99_9_us: float


class Pair(msgspec.Struct, frozen=True):
    """Two blocks that follow each other."""

    without: Block
    beside: Block


class Effect(msgspec.Struct, frozen=True):
    """One percentile.

    Attributes:
        without_us, beside_us: the median over the blocks.
        ratio: beside / without, the median over the pairs.
        chance: how likely pairs that agree so well are where the neighbour does nothing.
        slower: the ratio is above RATIO_MIN and the chance below CHANCE_MAX.
    """

    percentile: str
    without_us: float
    beside_us: float
    ratio: float
    chance: float
    slower: bool


def effects(pairs: Sequence[Pair]) -> tuple[Effect, ...]:
    """p50, p99 and p99.9 of all pairs."""
    return tuple(_effect(name, field, pairs) for name, field in PERCENTILES.items())


def slower(found: Sequence[Effect]) -> bool:
    """The verdict: p50 or p99 is slower. p99.9 is shown alone: a short block has too few requests behind
    it."""
    return any(effect.slower for effect in found if effect.percentile != "p99.9")


def _effect(name: str, field: str, pairs: Sequence[Pair]) -> Effect:
    without = [getattr(pair.without, field) for pair in pairs]
    beside = [getattr(pair.beside, field) for pair in pairs]
    logs = [math.log(after / before) for before, after in zip(without, beside, strict=True)]
    ratio, chance = math.exp(statistics.median(logs)), chance_of(logs)
    return Effect(
        percentile=name,
        without_us=statistics.median(without),
        beside_us=statistics.median(beside),
        ratio=ratio,
        chance=chance,
        slower=ratio >= RATIO_MIN and chance <= CHANCE_MAX,
    )


def chance_of(differences: Sequence[float]) -> float:
    """The chance of a sum of positive ranks as high as this one where signs are a coin's (Wilcoxon's signed
    ranks,
    exact). One pair that a stall of the machine turned round does not decide."""
    order = sorted(range(len(differences)), key=lambda index: abs(differences[index]))
    rank = sum(place for place, index in enumerate(order, 1) if differences[index] > 0)
    counts = _rank_sums(len(differences))
    return float(sum(counts[rank:])) / float(2 ** len(differences))


@cache
def _rank_sums(count: int) -> tuple[int, ...]:
    """In how many of all 2^count choices of signs the positive ranks sum up to each number."""
    sums = [1]
    for rank in range(1, count + 1):
        longer = sums + [0] * rank
        for total, ways in enumerate(sums):
            longer[total + rank] += ways
        sums = longer
    return tuple(sums)
