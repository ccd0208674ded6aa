"""Language models on the machine's cards: where they fit, how fast they are, and what that means for sigd."""

from __future__ import annotations

from dataclasses import dataclass

from sigd.bench.plan import memory, speed
from sigd.bench.plan.catalogue import CardPart, ModelPart, WeightsPart, language_models, parts
from sigd.bench.plan.links import exchange_way
from sigd.bench.plan.machine import Machine, Work
from sigd.bench.plan.memory import GIB, Layout
from sigd.bench.plan.ranges import Range, exactly
from sigd.bench.plan.verdict import Level, judge

ORDER: tuple[Level, ...] = ("fits", "tight", "does not fit")


@dataclass(frozen=True, slots=True)
class Fit:
    """The best layout of a model over some cards, on the card with the least room.

    Attributes:
        items: what it needs on that card, by name, in bytes.
        limit: what it may use there, in bytes.
        sigd: what the daemon takes of a card beside it, in bytes; 0 where it is elsewhere.
        tokens: tokens of cache that the room allows, at the best estimate; 0 where there is none.
    """

    layout: Layout
    items: tuple[tuple[str, Range], ...]
    need: Range
    limit: Range
    sigd: Range
    tokens: int
    level: Level


def sigd_share(machine: Machine, work: Work) -> Range:
    """What the daemon takes of its card's memory while the work runs, in bytes."""
    if machine.sigd is None or machine.sigd.card not in work.cards or work.sharing in ("stopped", "cpu"):
        return exactly(0.0)
    return memory.sigd_need(machine.sigd.engine_mib)


def room(machine: Machine, work: Work, number: int) -> Range:
    """Bytes of a card that the work may use: without sigd's share, or the share that vLLM is told to take."""
    usable = parts().cards[machine.cards[number].model].usable.range.times(GIB)
    held = sigd_share(machine, work) if machine.sigd and number == machine.sigd.card else exactly(0.0)
    left = Range(usable.low - held.high, usable.best - held.best, usable.high - held.low)
    if work.utilisation is not None:
        told = usable.times(work.utilisation)
        left = Range(min(left.low, told.low), min(left.best, told.best), min(left.high, told.high))
    nothing = 0.0
    return Range(max(left.low, nothing), max(left.best, nothing), max(left.high, nothing))


def fit(machine: Machine, work: Work) -> Fit:
    """The layout that fits best, of every layout that the cards allow; of equal ones the one with the fastest
    steps."""
    model, weights = language_models().models[work.model], language_models().weights[work.weights]
    rooms = sorted((room(machine, work, number) for number in work.cards), key=lambda one: -one.best)
    tokens = work.context_tokens * work.sequences
    fits = []
    for layout in memory.layouts(model, weights, len(work.cards)):
        items = memory.serving_need(model, weights, layout, tokens, work.cache_bytes)
        need, limit = memory.total(items), rooms[layout.cards - 1]
        free = limit.best - need.best + dict(items)["cache"].best
        per_token = memory.cache_bytes(model, work.cache_bytes) / memory.cache_split(model, layout)
        fits.append(
            Fit(
                layout,
                items,
                need,
                limit,
                sigd_share(machine, work),
                max(0, int(free / per_token)),
                judge(need, limit),
            )
        )
    return min(fits, key=lambda one: (ORDER.index(one.level), _slowness(machine, work, one)))


def _slowness(machine: Machine, work: Work, one: Fit) -> float:
    if one.level == "does not fit":
        return one.need.best - one.limit.best
    return decode_s(machine, work, one.layout).best


def slowest_card(machine: Machine, work: Work) -> CardPart:
    """The card of a work with the least bandwidth: it sets the pace of all."""
    cards = [parts().cards[machine.cards[number].model] for number in work.cards]
    return min(cards, key=lambda card: card.bandwidth.value)


def decode_s(machine: Machine, work: Work, layout: Layout) -> Range:
    """Seconds of one step at the power limits that are set."""
    model, weights = language_models().models[work.model], language_models().weights[work.weights]
    card = slowest_card(machine, work)
    step = speed.decode_s(
        model,
        weights,
        layout,
        card,
        speed.exchange(exchange_way(machine)),
        context_tokens=work.context_tokens,
        sequences=work.sequences,
        value_bytes=work.cache_bytes,
    )
    curve = "decode_pair" if layout.tensor > 1 else "decode"
    return step.times(1 / power_share(machine, work, curve))


def power_share(machine: Machine, work: Work, curve: str) -> float:
    """The share of full speed that the lowest power limit of the work's cards leaves."""
    return min(
        speed.limit_share(curve, parts().cards[machine.cards[number].model], machine.limit_w(number))
        for number in work.cards
    )


def offloaded_s(machine: Machine, work: Work, best: Fit) -> Range | None:
    """Seconds of one step with the weights that do not fit in host memory; None where there is no host
    memory."""
    if machine.memory is None:
        return None
    model, weights = language_models().models[work.model], language_models().weights[work.weights]
    card = slowest_card(machine, work)
    over = max(0.0, best.need.best - best.limit.best) * best.layout.cards
    bandwidth = speed.bandwidth_share(card, weights).times(card.bandwidth.value * speed.GIGA)
    whole = memory.bytes_of(model, weights).best
    host = speed.host_rate(machine.memory.mts)
    return speed.offloaded_s(max(0.0, whole - over), over, bandwidth, host)


def padded_fault(model: ModelPart, weights: WeightsPart, cards: int) -> str | None:
    """Why the layers cannot be split over all the cards of a work; None where they can."""
    return memory.tensor_fault(model, weights, cards)
