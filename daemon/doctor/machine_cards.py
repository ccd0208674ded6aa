"""Checks of the cards against the description of the machine: limits, lanes, room, bandwidth, topology."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from sigd.daemon.doctor.bandwidth import Measured
from sigd.daemon.doctor.cards import on_card
from sigd.daemon.doctor.commands import Run
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card

LIMIT_TOLERANCE_W: Final = 1.0
_GIB: Final = 2**30
_TOPOLOGY: Final = ("nvidia-smi", "topo", "-m")


class ExpectedCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One card of the description.

    Attributes:
        limit_w: the power limit that is to be set.
        lanes, generation: of its slot; None where the board is not named.
        copy_gb_s: what a copy inside the card has to reach, reading and writing counted.
        needed_bytes: what sigd and the served language model need of it at most.
    """

    model: str
    limit_w: float
    lanes: int | None
    generation: int | None
    copy_gb_s: float
    needed_bytes: int


def expected_lines(cards: Sequence[ExpectedCard], nvlink: bool) -> Iterator[tuple[str, str]]:
    """Each check of the cards with what it expects, for a machine whose cards cannot be asked."""
    yield "cards expected", f"expected {', '.join(card.model for card in cards)}"
    yield "power limit", f"expected {' and '.join(f'{card.limit_w:.0f} W' for card in cards)}"
    yield "lanes", f"expected {' and '.join(_slot(card) for card in cards)}"
    yield "room", f"expected {' and '.join(f'{card.needed_bytes / _GIB:.1f} GiB' for card in cards)}"
    yield "bandwidth", f"expected {' and '.join(f'{card.copy_gb_s:.0f} GB/s' for card in cards)}"
    yield "topology", f"expected {_bridge(nvlink)}"


def _slot(card: ExpectedCard) -> str:
    return "no board is named" if card.lanes is None else f"x{card.lanes} of PCIe {card.generation}.0"


def _bridge(nvlink: bool) -> str:
    return "NV4 between the cards" if nvlink else "no NVLink between the cards"


def power_limit(card: Card, expected: ExpectedCard) -> Finding:
    """Whether the limit of the plan is set: supply and battery were computed with it."""
    check = "planned power limit"
    if card.power_limit_w is None:
        return on_card(card, check, "skip", f"expected {expected.limit_w:.0f} W; the driver does not say")
    seen = f"{card.power_limit_w:.0f} W, expected {expected.limit_w:.0f}"
    if card.power_limit_w > expected.limit_w + LIMIT_TOLERANCE_W:
        return on_card(
            card,
            check,
            "fail",
            seen,
            "The supply or the battery may switch off under the load of all cards.",
            f"sudo nvidia-smi -i {card.index} --power-limit={expected.limit_w:.0f}",
        )
    if card.power_limit_w < expected.limit_w - LIMIT_TOLERANCE_W:
        return on_card(
            card,
            check,
            "warn",
            seen,
            "The card is slower than the plan says.",
            f"sudo nvidia-smi -i {card.index} --power-limit={expected.limit_w:.0f}",
        )
    return on_card(card, check, "ok", seen)


def lanes(card: Card, expected: ExpectedCard) -> Finding:
    """Width and generation of the card's link. An idle link is clocked down, but keeps its width."""
    check = "planned lanes"
    if expected.lanes is None or expected.generation is None:
        return on_card(card, check, "skip", "the description names no board")
    wanted = f"expected x{expected.lanes} of generation {expected.generation}"
    if card.pcie_width is None or card.pcie_generation is None:
        return on_card(card, check, "skip", f"{wanted}; the driver does not say")
    seen = f"x{card.pcie_width} of generation {card.pcie_generation}, {wanted}"
    if card.pcie_width < expected.lanes:
        return on_card(
            card,
            check,
            "fail",
            seen,
            "Exchange between the cards and loading take that much longer.",
            "# the slot's wiring in the board's manual, a riser cable, and what shares the slot's lanes",
            f"sudo lspci -vv -s {card.bus_id} | grep -E 'LnkCap|LnkSta'",
        )
    if card.pcie_generation < expected.generation:
        if card.idle is not False:
            return on_card(card, check, "ok", f"{seen}; clocked down while the card idles")
        return on_card(
            card,
            check,
            "fail",
            f"{seen}, at work",
            "The link runs at half its speed or less.",
            "# the slot's generation in the firmware's settings, and any riser cable",
        )
    return on_card(card, check, "ok", seen)


def room(card: Card, expected: ExpectedCard) -> Finding:
    """Whether what the plan puts on the card has its memory: free, or held by sigd and vLLM already."""
    check = "planned memory"
    if card.memory_free_bytes is None:
        return on_card(card, check, "skip", "the driver does not say")
    ours = sum(
        tenant.memory_bytes or 0
        for tenant in card.tenants
        if re.search(r"sigd|vllm", tenant.program, re.IGNORECASE)
    )
    there = card.memory_free_bytes + ours
    seen = (
        f"{card.memory_free_bytes / _GIB:.1f} GiB free and {ours / _GIB:.1f} held by sigd or vLLM,"
        f" expected {expected.needed_bytes / _GIB:.1f} at most"
    )
    if there >= expected.needed_bytes:
        return on_card(card, check, "ok", seen)
    return on_card(
        card,
        check,
        "fail",
        seen,
        "What starts last finds no memory, and ends.",
        "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv",
    )


def bandwidth(card: Card, expected: ExpectedCard, measured: Measured | str) -> Finding:
    """What a copy inside the card reaches."""
    check = "memory bandwidth"
    wanted = f"expected {expected.copy_gb_s:.0f} GB/s or more"
    if isinstance(measured, str):
        return on_card(card, check, "skip", f"{wanted}; {measured}")
    seen = f"{measured.gb_s:.0f} GB/s measured, {wanted}"
    if measured.gb_s >= expected.copy_gb_s:
        return on_card(card, check, "ok", seen)
    return on_card(
        card,
        check,
        "warn",
        seen,
        "Decoding is slower than the plan says by as much; a neighbour at work takes its share too.",
        f"nvidia-smi -i {card.index} --query --display=CLOCK,PERFORMANCE",
        "# again with nothing else on the card; if it stays low, the memory may be too hot",
    )


def between_cards(text: str) -> dict[tuple[int, int], str]:
    """The links of `nvidia-smi topo -m` by pairs of cards: "NV4", "PHB", "NODE", "SYS", ..."""
    columns: list[int] | None = None
    links = {}
    for line in text.splitlines():
        words = re.sub(r"\x1b\[[0-9;]*m", "", line).split()
        if columns is None:
            # Columns of other devices (NIC0, ...) stand between the cards and the affinities.
            found = [int(word[3:]) for word in words if re.fullmatch(r"GPU\d+", word)]
            columns = found or None
            continue
        if words and re.fullmatch(r"GPU\d+", words[0]):
            row = int(words[0][3:])
            for column, link in zip(columns, words[1:], strict=False):
                if column != row:
                    links[row, column] = link
    return links


def topology(command: Run, count: int, nvlink: bool) -> Finding:
    """How the cards reach each other, in the driver's words."""
    check, subject = "topology", "machine"
    wanted = f"expected {_bridge(nvlink)}"
    if count < 2:
        return Finding(check, "skip", "one card reaches no other", subject=subject)
    text = command(_TOPOLOGY, 20.0)
    links = between_cards(text or "")
    if not links:
        return Finding(check, "skip", f"{wanted}; nvidia-smi topo -m tells of no pair", subject=subject)
    kinds = ", ".join(sorted(set(links.values())))
    bridged = all(link.startswith("NV") for link in links.values())
    if nvlink and not bridged:
        return Finding(
            check,
            "fail",
            f"{kinds}, {wanted}",
            "Prompts over both cards take several times as long as planned.",
            ("nvidia-smi nvlink --status", "# reseat the bridge with the machine switched off"),
            subject,
        )
    far = not nvlink and any(link == "SYS" for link in links.values())
    if far:
        return Finding(
            check,
            "warn",
            f"{kinds}: the cards hang on different processors, {wanted}",
            "Each exchange crosses the link between the processors.",
            ("# move one card to a slot of the other's processor",),
            subject,
        )
    return Finding(check, "ok", f"{kinds}, {wanted}", subject=subject)
