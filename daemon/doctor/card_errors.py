"""Checks of what a card has got wrong: whether it answers, its memory (ECC), and the driver's log of it
(Xid)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sigd.daemon.doctor.cards import on_card
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")
_XID_OF_HARDWARE: Final = frozenset({48, 61, 62, 64, 74, 79, 92, 94, 95, 119, 120, 140})
"""Xid errors that NVIDIA's list lays to the card, its memory, its firmware or the bus, not to a program."""


def identity(card: Card) -> Finding:
    """Which card it is, and whether it answers at all."""
    if card.lost is not None:
        return on_card(
            card,
            "card",
            "fail",
            f"does not answer: {card.lost}",
            "A model on it answers nothing; a daemon that serves from it has to be started again once it is"
            " back.",
            "sudo dmesg | grep -i -E 'nvrm|xid'",
            "sudo reboot",
        )
    capability = (
        ""
        if card.compute_capability is None
        else ", compute capability {}.{}".format(*card.compute_capability)
    )
    return on_card(card, "card", "ok", f"{card.name}{capability}, PCI {card.bus_id}")


def memory_errors(card: Card) -> Finding:
    """Whether the card's memory has made errors that it could not correct (ECC)."""
    check = "ECC"
    if card.ecc is None:
        return on_card(card, check, "skip", "this card has no error correction")
    if not card.ecc:
        return on_card(card, check, "ok", "switched off")
    if not card.ecc_uncorrected:
        return on_card(card, check, "ok", "on, no uncorrected error since the driver was loaded")
    return on_card(
        card,
        check,
        "fail",
        f"{card.ecc_uncorrected} uncorrected errors since the driver was loaded",
        "Weights or inputs may have been wrong; the driver kills the process that meets such an error.",
        f"nvidia-smi -i {card.index} --query --display=ECC,PAGE_RETIREMENT",
        "sudo reboot",
    )


def driver_errors(card: Card, kernel_log: Sequence[str] | None) -> Finding:
    """Whether the driver has logged errors (Xid) of this card since boot."""
    check = "Xid"
    if kernel_log is None:
        return on_card(
            card, check, "skip", "the kernel's log may not be read: run as root, or sudo dmesg | grep -i xid"
        )
    found = [
        int(match[2]) for match in map(_XID.search, kernel_log) if match and _same_slot(match[1], card.bus_id)
    ]
    if not found:
        return on_card(card, check, "ok", "none in the kernel's log")
    of_hardware = _XID_OF_HARDWARE.intersection(found)
    named = ", ".join(f"{xid} ({found.count(xid)} times)" for xid in sorted(set(found)))
    return on_card(
        card,
        check,
        "fail" if of_hardware else "warn",
        named,
        "The driver lays at least one of these to the card or the bus: it will come again, and ends whatever"
        " runs."
        if of_hardware
        else "A program on this card was ended by the driver; the others on it stood still meanwhile.",
        "sudo dmesg | grep -i xid",
        "# what each number means: https://docs.nvidia.com/deploy/xid-errors/",
    )


def _same_slot(logged: str, bus_id: str) -> bool:
    """The driver logs "0000:01:00" for the card at "0000:01:00.0"."""
    return bus_id.partition(".")[0] == logged.lower().partition(".")[0]
