"""Where language models can run: the largest that fits beside sigd, and what both cards together would
cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from sigd.bench.plan import memory, power, serving
from sigd.bench.plan.catalogue import language_models
from sigd.bench.plan.machine import Machine, Sharing, Work
from sigd.bench.plan.ranges import Range
from sigd.bench.plan.serving import Fit

FORMATS = ("fp16", "int8", "awq")
CONTEXT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """A model in a format of weights on some cards.

    Attributes:
        rate: tokens/s of one stream, at the power limits of the machine.
        tail: what it does to sigd.
    """

    work: Work
    fit: Fit
    rate: Range
    tail: str


def places(machine: Machine) -> Iterator[Place]:
    """Every model and format: on the cards that sigd leaves free, then on all of them with sigd stopped."""
    free = tuple(
        number for number in range(len(machine.cards)) if machine.sigd is None or number != machine.sigd.card
    )
    everywhere = tuple(range(len(machine.cards)))
    cases: list[tuple[tuple[int, ...], Sharing, str]] = []
    if free:
        cases.append((free, "time-sliced", "none: another card"))
    if everywhere != free:
        cases.append((everywhere, "stopped", "sigd is stopped, or on its CPU engine"))
    for cards, sharing, tail in cases:
        for name in language_models().models:
            for weights in FORMATS:
                work = Work(
                    name=f"{name} {weights}",
                    kind="serve",
                    model=name,
                    weights=weights,
                    cards=cards,
                    context_tokens=CONTEXT_TOKENS,
                    sharing=sharing,
                )
                fit = serving.fit(machine, work)
                yield Place(work, fit, serving.decode_s(machine, work, fit.layout).inverse(), tail)


def recommended(machine: Machine) -> Place | None:
    """The largest model that fits for certain on cards without sigd; of equal ones the one with more bits.
    None where none fits."""
    fitting = [
        place
        for place in places(machine)
        if place.fit.level == "fits"
        and serving.sigd_share(machine, place.work).best == 0
        and place.work.sharing != "stopped"
    ]
    return max(fitting, key=_size, default=None)


def _size(place: Place) -> tuple[float, float]:
    model, weights = (
        language_models().models[place.work.model],
        language_models().weights[place.work.weights],
    )
    return memory.parameters(model), weights.bits.value


def capped(machine: Machine) -> Machine:
    """The machine with the highest power limit with which supply and battery fit; as it is where none is
    needed."""
    cap = power.highest_cap_w(machine)
    return machine if cap is None else power.with_limit(machine, cap)


def served(machine: Machine) -> Work | None:
    """The model that vLLM is to serve: the one that the file marks, else the recommended one."""
    marked = [work for work in machine.work if work.served and work.kind == "serve"]
    if marked:
        return marked[0]
    place = recommended(machine)
    return None if place is None else msgspec.structs.replace(place.work, served=True)
