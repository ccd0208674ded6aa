"""Lanes of the slots, rates of the links, and the network."""

from __future__ import annotations

from sigd.bench.plan.catalogue import parts
from sigd.bench.plan.machine import Machine

CPU_SLOTS = 2
"""Slots that hang on the processor; a third card and everything else hang on the chipset."""


def lane_gb_s(generation: int) -> float:
    """GB/s of one lane in one direction."""
    return parts().lanes[str(generation)].value


def link_gb_s(lanes: int, generation: int) -> float:
    """GB/s of a slot in one direction."""
    return lanes * lane_gb_s(generation)


def lanes_of(machine: Machine, number: int) -> int | None:
    """Lanes that a card's slot has with the others in; None where the board is not known."""
    if machine.board is None:
        return None
    board = parts().boards[machine.board.model]
    if len(machine.cards) == 1:
        return int(board.lanes[0].value)
    return int(board.lanes[1].value if number < CPU_SLOTS else board.lanes[2].value)


def nic_lanes(machine: Machine) -> int | None:
    """Lanes that are left for the network card: the chipset's once two cards have the processor's slots."""
    if machine.nic is None or machine.board is None:
        return None
    nic, board = parts().nics[machine.nic.model], parts().boards[machine.board.model]
    own = int(nic.lanes.value)
    return min(own, int(board.chipset_lanes.value)) if len(machine.cards) >= CPU_SLOTS else own


def payload_gbit_s(rate_gbit_s: float, mtu: int) -> float:
    """TCP payload on Ethernet: 12 bytes of time stamps and 40 of headers off each packet, 38 around each
    frame."""
    return rate_gbit_s * (mtu - 52) / (mtu + 38)


def exchange_way(machine: Machine) -> str:
    """How two cards of the machine exchange: over a bridge, peer to peer, or through host memory."""
    if machine.unified:
        return "nvlink"
    if machine.nvlink:
        return "nvlink"
    return "p2p" if machine.peer_to_peer else "host"
