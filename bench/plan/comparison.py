"""One machine's work on others: by memory and by bandwidth."""

from __future__ import annotations

import msgspec

from sigd.bench.plan import memory, power, serving, speed, training
from sigd.bench.plan.catalogue import language_models, parts
from sigd.bench.plan.links import exchange_way
from sigd.bench.plan.machine import Machine, Work
from sigd.bench.plan.ranges import Range
from sigd.bench.plan.verdict import Level, judge


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work on one machine.

    Attributes:
        need, room: GiB on the card with the least room.
        decode: tokens/s of one stream; None for training, and where it does not fit.
        first_s: seconds until the first token of a prompt as long as the context.
    """

    level: Level
    need: Range
    room: Range
    decode: Range | None = None
    first_s: Range | None = None


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One machine: its memory in GiB, its bandwidth in GB/s, what it draws in W, and a cell for each piece of
    work."""

    machine: str
    memory_gib: float
    bandwidth_gb_s: float
    draw_w: Range
    cells: tuple[Cell, ...]


def column(work: tuple[Work, ...], machine: Machine) -> Column:
    """The work on all cards of a machine, with nothing beside it."""
    cards = [parts().cards[card.model] for card in machine.cards]
    return Column(
        machine=machine.name,
        memory_gib=sum(card.usable.value for card in cards),
        bandwidth_gb_s=min(card.bandwidth.value for card in cards),
        draw_w=power.dc_w(machine),
        cells=tuple(_cell(one, machine) for one in work),
    )


def comparable(machine: Machine) -> tuple[Work, ...]:
    """The work of a machine that has a need of memory: language models, served or tuned."""
    return tuple(one for one in machine.work if one.kind not in ("mlp", "rl"))


def _cell(work: Work, machine: Machine) -> Cell:
    everywhere = tuple(range(len(machine.cards)))
    alone = msgspec.structs.replace(work, cards=everywhere, sharing="stopped", utilisation=None)
    model = language_models().models[work.model]
    if work.kind != "serve":
        need = memory.total(
            training.tuning_need(
                work.kind, model, len(everywhere), work.group, work.context_tokens, work.rank
            )
        )
        room = min((serving.room(machine, alone, card) for card in everywhere), key=lambda one: one.best)
        return Cell(level=judge(need, room), need=_gib(need), room=_gib(room))
    fit = serving.fit(machine, alone)
    if fit.level == "does not fit":
        return Cell(level=fit.level, need=_gib(fit.need), room=_gib(fit.limit))
    card = serving.slowest_card(machine, alone)
    first = speed.prefill_s(
        model, fit.layout, card, speed.exchange(exchange_way(machine)), work.context_tokens
    )
    return Cell(
        level=fit.level,
        need=_gib(fit.need),
        room=_gib(fit.limit),
        decode=serving.decode_s(machine, alone, fit.layout).inverse(),
        first_s=first.times(1 / serving.power_share(machine, alone, "prefill")),
    )


def _gib(value: Range) -> Range:
    return value.times(1 / memory.GIB)
