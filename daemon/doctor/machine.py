"""What `--machine` expects of this machine, and the checks that hold it to that.

The expectations are computed by `sigd plan` from MACHINE.toml and come as JSON. Without a GPU, or without a
program that a check needs, the check skips and says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sigd.daemon.doctor import machine_cards, machine_host, nvml
from sigd.daemon.doctor.bandwidth import Measured, measure
from sigd.daemon.doctor.commands import Run, run
from sigd.daemon.doctor.expect import Expected, cards_expected
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card
from sigd.daemon.doctor.host import Host
from sigd.daemon.doctor.machine_cards import ExpectedCard
from sigd.daemon.doctor.machine_host import ExpectedNetwork
from sigd.daemon.doctor.nvml import NoCards

SUBJECT = "machine"


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the description of a machine says.

    Attributes:
        cards: in the order of the PCI bus.
        drive: the model of the disk; None where none is named.
    """

    name: str
    cards: tuple[ExpectedCard, ...]
    nvlink: bool
    peer_to_peer: bool
    drive: str | None
    network: ExpectedNetwork | None


def examine_machine(
    host: Host,
    machine: Machine,
    *,
    load: Callable[[Host], Any] = nvml.load,
    command: Run = run,
    copy: Callable[[int], Measured | str] = measure,
    far_end: str | None = None,
) -> list[Finding]:
    """All checks of a machine against its description.

    Args:
        load: gives the NVML library; raises NoCards where there is none.
        command: runs a program.
        copy: measures a copy inside a card; a text says why it could not.
        far_end: the host that runs `iperf3 --server`; None for none.
    """
    kinds = Counter(card.model for card in machine.cards)
    expected = [Expected(count, model) for model, count in kinds.items()]
    try:
        library = load(host)
        # A copy wakes a card, so that its link shows the speed that it has at work.
        measured = [copy(number) for number in range(len(machine.cards))]
        cards = nvml.read(library, host).cards
    except NoCards as none:
        missing = none.finding.what
        findings = [
            Finding(check, "skip", f"{what}; {missing}", subject=SUBJECT)
            for check, what in machine_cards.expected_lines(machine.cards, machine.nvlink)
        ]
    else:
        findings = [_about_machine(finding) for finding in cards_expected(expected, cards)]
        findings += _cards(machine, cards, measured)
        findings.append(machine_cards.topology(command, len(machine.cards), machine.nvlink))
    return [
        *findings,
        machine_host.iommu(host, len(machine.cards)),
        machine_host.drive(host, machine.drive),
        *machine_host.network(host, machine.network),
        machine_host.throughput(host, command, machine.network, far_end),
        machine_host.torch_devices(command, len(machine.cards)),
    ]


def _about_machine(finding: Finding) -> Finding:
    return msgspec.structs.replace(finding, subject=SUBJECT)


def _cards(machine: Machine, cards: tuple[Card, ...], copies: Sequence[Measured | str]) -> list[Finding]:
    findings = []
    # Cards are numbered along the bus in both, so the first of one is the first of the other.
    for expected, card, measured in zip(machine.cards, cards, copies, strict=False):
        if card.lost is not None:
            continue
        findings += [
            machine_cards.power_limit(card, expected),
            machine_cards.lanes(card, expected),
            machine_cards.room(card, expected),
            machine_cards.bandwidth(card, expected, measured),
        ]
    return findings
