"""All verdicts on a machine, and the sums that the document shows beside them."""

from __future__ import annotations

import msgspec

from sigd.bench.plan.machine import Machine
from sigd.bench.plan.machine_verdicts import of_machine
from sigd.bench.plan.verdict import Verdict, in_order
from sigd.bench.plan.work_verdicts import of_work


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What `sigd plan --json` prints.

    Attributes:
        verdicts: all, in the order of the machine's file.
        change: those that do not fit or are tight, the most harmful first.
        price_usd: the sum of the prices that the file names.
    """

    machine: str
    fits: bool
    price_usd: float
    change: tuple[Verdict, ...]
    verdicts: tuple[Verdict, ...]


def make(machine: Machine) -> Plan:
    """Compute the plan of a machine."""
    verdicts = [*of_work(machine), *of_machine(machine)]
    change = [one for one in in_order(verdicts) if one.level != "fits"]
    return Plan(
        machine=machine.name,
        fits=all(one.level != "does not fit" for one in verdicts),
        price_usd=sum(machine.prices_usd.values()),
        change=tuple(change),
        verdicts=tuple(verdicts),
    )
