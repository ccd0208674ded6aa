"""Power and heat: DC of the parts, AC at the wall, what the supply and the battery bear, air for the case."""

from __future__ import annotations

import itertools

import msgspec

from sigd.bench.plan.catalogue import parts
from sigd.bench.plan.machine import Machine
from sigd.bench.plan.ranges import NOTHING, Range, exactly
from sigd.bench.plan.verdict import judge

CFM_PER_M3_H = 0.5886
CAP_MIN_W = 200
"""Below this limit an RTX 3090 loses more speed than it saves power."""


def card_w(machine: Machine, number: int) -> Range:
    """What one card draws under load: the limit that is set; without one a board may have a higher one of its
    own."""
    part = parts().cards[machine.cards[number].model]
    if machine.cards[number].limit_w is None:
        return part.limit.range
    return exactly(machine.limit_w(number))


def rest_w(machine: Machine) -> Range:
    """Processor, board, memory, drives, fans. An Apple chip's limit is the whole machine's."""
    if machine.unified:
        return NOTHING
    processors = parts().processors
    package = processors[machine.processor].package.range if machine.processor is not None else NOTHING
    return package + parts().supply.rest.range


def dc_w(machine: Machine) -> Range:
    """DC of the whole machine with every card at its limit."""
    result = rest_w(machine)
    for number in range(len(machine.cards)):
        result = result + card_w(machine, number)
    return result


def transient_w(machine: Machine) -> Range:
    """DC for milliseconds, with every card at its peak at once."""
    result = rest_w(machine)
    for number, card in enumerate(machine.cards):
        limit, factor = card_w(machine, number), parts().cards[card.model].transient.range
        result = result + Range(limit.low * factor.low, limit.best * factor.best, limit.high * factor.high)
    return result


def efficiency(load: float) -> float:
    """DC out over AC in, at a load that is a share of the rating: the standard's three points, straight
    between."""
    supply = parts().supply
    points = ((0.2, supply.load_20.value), (0.5, supply.load_50.value), (1.0, supply.load_100.value))
    if load <= points[0][0]:
        return points[0][1]
    for (left, below), (right, above) in itertools.pairwise(points):
        if load <= right:
            return below + (above - below) * (load - left) / (right - left)
    return points[-1][1]


def ac_w(dc: float, eta: float) -> float:
    """AC at the wall in W for a DC output: the rating of a supply is what it delivers, its losses come on
    top."""
    return dc / eta


def wall_w(dc: Range, rating_w: float) -> Range:
    """AC at the wall for a DC output, at the efficiency of that load."""
    low, best, high = (ac_w(value, efficiency(value / rating_w)) for value in (dc.low, dc.best, dc.high))
    return Range(low, best, high)


def excursion_w(standard: str, rating_w: float) -> Range:
    """What a supply bears for milliseconds."""
    supply = parts().supply
    factor = supply.excursion_atx3 if standard == "atx3" else supply.excursion_atx2
    return factor.range.times(rating_w)


def battery_w(believed_w: float) -> Range:
    """What a battery bears: what its owner believes, and what is known of it."""
    known = parts().supply.battery.value
    return Range(min(believed_w, known), min(believed_w, known), max(believed_w, known))


def highest_cap_w(machine: Machine) -> float | None:
    """The highest power limit of all cards, in steps of 10 W, with which supply and battery fit; None without
    one."""
    supply, battery = machine.supply, machine.battery
    if supply is None:
        return None
    highest = min(parts().cards[card.model].limit.value for card in machine.cards)
    for cap in range(int(highest // 10) * 10, CAP_MIN_W - 1, -10):
        capped = with_limit(machine, cap)
        if judge(transient_w(capped), excursion_w(supply.standard, supply.rating_w)) != "fits":
            continue
        if (
            battery is None
            or judge(wall_w(dc_w(capped), supply.rating_w), battery_w(battery.rating_w)) == "fits"
        ):
            return float(cap)
    return None


def with_limit(machine: Machine, limit_w: float) -> Machine:
    """The machine with the same power limit for every card."""
    cards = tuple(msgspec.structs.replace(card, limit_w=limit_w) for card in machine.cards)
    return msgspec.structs.replace(machine, cards=cards)


def airflow_m3_h(heat_w: float, rise_k: float | None = None) -> float:
    """Air that carries so many watts away at a rise of the air's temperature, in m3/h."""
    air = parts().air
    rise = air.rise.value if rise_k is None else rise_k
    return 3600 * heat_w / (air.density.value * air.heat.value * rise)
