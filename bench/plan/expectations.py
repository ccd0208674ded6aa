"""What a machine's description says that `sigd doctor --machine` has to find, as JSON: the doctor reads it
and imports nothing of this room."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sigd.bench.plan import links, memory, serving
from sigd.bench.plan.catalogue import parts
from sigd.bench.plan.machine import Machine, read
from sigd.bench.plan.placement import served
from sigd.bench.plan.verification import COPY_SHARE


def expectations_json(path: Path) -> bytes:
    """The expectations of a machine's file.

    Raises:
        BadMachine, UnknownPart: the file is not a machine's description.
    """
    return msgspec.json.encode(expectations(read(path)))


def expectations(machine: Machine) -> dict[str, object]:
    """The expectations of a machine; what its file leaves out is None."""
    generation = None
    if machine.board is not None:
        generation = int(parts().boards[machine.board.model].generation.value)
    needed = _needed_bytes(machine)
    cards = [
        {
            "model": card.model,
            "limit_w": machine.limit_w(number),
            "lanes": links.lanes_of(machine, number),
            "generation": generation,
            "copy_gb_s": COPY_SHARE * parts().cards[card.model].bandwidth.value,
            "needed_bytes": needed[number],
        }
        for number, card in enumerate(machine.cards)
    ]
    network = None
    if machine.nic is not None:
        rate = parts().nics[machine.nic.model].rate.value
        network = {
            "rate_gbit_s": rate,
            "mtu": machine.nic.mtu,
            "payload_gbit_s": links.payload_gbit_s(rate, machine.nic.mtu) - 0.1,
        }
    return {
        "name": machine.name,
        "cards": cards,
        "nvlink": machine.nvlink,
        "peer_to_peer": machine.peer_to_peer,
        "drive": None if machine.drive is None else machine.drive.model,
        "network": network,
    }


def _needed_bytes(machine: Machine) -> list[int]:
    """Bytes that sigd and the served language model need at most on each card."""
    needed = [0.0] * len(machine.cards)
    if machine.sigd is not None:
        needed[machine.sigd.card] += memory.sigd_need(machine.sigd.engine_mib).high
    work = served(machine)
    if work is not None:
        fit = serving.fit(machine, work)
        for number in work.cards[: fit.layout.cards]:
            needed[number] += fit.need.high
    return [int(need) for need in needed]
