"""The measurement: one daemon, blocks without the neighbour and beside it, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from sigd.bench import histogram, rig, verdict
from sigd.bench.load.contract import LoadGenerator, LoadPlan, Measurement
from sigd.bench.neighbour import judge
from sigd.bench.neighbour.judge import Block, Effect, Pair
from sigd.bench.neighbour.process import running
from sigd.bench.rig import Settings

ROUNDS = 12
"""Ten would do where all pairs agree; with twelve, two that a stall turned round do not decide."""
BLOCK_S = 0.5
BLOCK_WARMUP_S = 0.1
SETTLE_S = 0.3
PAUSE_S = 0.1
"""After the neighbour has ended: what it leaves behind (memory given back, a card that clocks down) is not
the next
block's."""
_PERCENTS = (50.0, 99.0, 99.9)

Say = Callable[[str], None]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` writes. Times are us.

    Attributes:
        slower: the verdict: the neighbour makes answers slower.
        within_budget: p99 beside the neighbour is within the budget; None where none was set.
        valid: nothing was lost and the contract was kept, so the figures may be quoted.
    """

    neighbour: str
    slower: bool
    within_budget: bool | None
    valid: bool
    reasons: tuple[str, ...]
    effects: tuple[Effect, ...]
    pairs: tuple[Pair, ...]
    block_s: float
    client: str

    @property
    def passed(self) -> bool:
        """The figures hold, and the neighbour does no harm."""
        return self.valid and not self.slower and self.within_budget is not False


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        settings: of the load and of the daemon; its duration is that of a block.
        words: the neighbour's command.
        settle_s: how long it has to begin its work before a block.
    """

    settings: Settings
    words: list[str]
    rounds: int = ROUNDS
    settle_s: float = SETTLE_S


def measure(asked: Asked, say: Say) -> Result:
    """Measure. `say` is told what is being done, a line at a time.

    Raises:
        BadRequest: the settings do not fit each other, the daemon or the neighbour.
        MissingDependency: a compiler or a backend is missing.
        PeerFailed: the daemon or the neighbour ended before its time.
    """
    settings = replace(
        asked.settings,
        duration_s=asked.settings.duration_s or BLOCK_S,
        warmup_s=min(asked.settings.warmup_s, BLOCK_WARMUP_S),
    )
    generator, _, note = rig.choose_client(settings)
    daemon_cpu, client_cpu = rig.cores_of(settings)
    pairs, measurements = [], []
    with rig.target_of(settings, daemon_cpu, say) as target:
        (plan,), _ = rig.plans_of(settings, target, client_cpu, say)
        for number in range(asked.rounds):
            say(f"round {number + 1} of {asked.rounds}")
            without, beside = _round(asked, generator, plan, beside_first=bool(number % 2))
            pairs.append(Pair(_block(without), _block(beside)))
            measurements += [without, beside]
        rig.end(settings, target)
    return result_of(asked, settings, pairs, measurements, note)


def result_of(
    asked: Asked, settings: Settings, pairs: list[Pair], measurements: list[Measurement], note: str
) -> Result:
    """The verdict over all pairs."""
    reasons = sorted({reason for one in measurements for reason in verdict.judge(one, None).reasons})
    effects = judge.effects(pairs)
    p99_us = next(effect.beside_us for effect in effects if effect.percentile == "p99")
    within = None if settings.budget_ns is None else p99_us <= settings.budget_ns / 1000
    return Result(
        neighbour=" ".join(asked.words),
        slower=judge.slower(effects),
        within_budget=within,
        valid=not reasons,
        reasons=tuple(reasons),
        effects=effects,
        pairs=tuple(pairs),
        block_s=settings.duration_s or BLOCK_S,
        client=note or "C++",
    )


def _round(
    asked: Asked, generator: LoadGenerator, plan: LoadPlan, *, beside_first: bool
) -> tuple[Measurement, Measurement]:
    """A block without and a block beside. Which comes first changes: drift of the machine then hits both
    alike."""
    if beside_first:
        beside = _beside(asked, generator, plan)
        return generator.run(plan, lambda: None), beside
    without = generator.run(plan, lambda: None)
    return without, _beside(asked, generator, plan)


def _beside(asked: Asked, generator: LoadGenerator, plan: LoadPlan) -> Measurement:
    with running(asked.words, asked.settle_s):
        measurement = generator.run(plan, lambda: None)
    time.sleep(PAUSE_S)
    return measurement


def _block(measurement: Measurement) -> Block:
    p50, p99, p99_9 = histogram.percentiles_ns(measurement.counts.corrected, _PERCENTS)
    return Block(max(p50, 1) / 1000, max(p99, 1) / 1000, max(p99_9, 1) / 1000)
