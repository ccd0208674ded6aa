"""Checks of how fast a card runs, and whether it keeps to that. What a card does not tell is None; its check
skips."""

from __future__ import annotations

from typing import Final

from sigd.daemon.doctor.cards import on_card, subject
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card

HELD_CLOCK_SHARE: Final = 0.5
"""A card whose SM clock is at least this share of its highest is held up or working; an idle one falls to a
tenth."""
PCIE_WIDTH_MIN: Final = 8
POWER_SHARE_MAX: Final = 0.95
TEMPERATURE_MARGIN_C: Final = 10


def clocks(card: Card) -> Finding:
    """Whether the card keeps its clock when it has nothing to do. NVML has no reading for locked clocks, so
    it is judged by the clock of this moment."""
    check = "clocks"
    if card.sm_clock_mhz is None or not card.sm_clock_max_mhz:
        return on_card(card, check, "skip", "the driver does not say")
    state = "" if card.performance_state is None else f", performance state P{card.performance_state}"
    seen = f"SM clock {card.sm_clock_mhz} of {card.sm_clock_max_mhz} MHz{state}"
    if card.sm_clock_mhz >= HELD_CLOCK_SHARE * card.sm_clock_max_mhz:
        working = card.idle is False and bool(card.tenants)
        judged = "working now, so whether they are locked does not show" if working else "held up while idle"
        return on_card(card, check, "ok", f"{seen}; {judged}")
    if card.idle is False and card.slowdowns:
        return on_card(card, check, "ok", f"{seen}; slowed down at work, see throttling")
    # Four fifths of the highest clock, in the steps of 15 MHz that cards have: about the rated boost clock.
    lock_mhz = int(card.sm_clock_max_mhz * 0.8) // 15 * 15
    return on_card(
        card,
        check,
        "warn",
        f"{seen}: not locked",
        "The card clocks down when it has nothing to do, and the first batches after a pause run slowly until"
        " it has clocked up again.",
        f"sudo nvidia-smi -i {card.index} --lock-gpu-clocks={lock_mhz},{lock_mhz}",
    )


def pcie(card: Card) -> Finding:
    """The link that each batch crosses twice."""
    check = "PCIe"
    generation, width = card.pcie_generation, card.pcie_width
    if generation is None or width is None:
        return on_card(card, check, "skip", "the driver does not say")
    seen = (
        f"generation {generation} of {card.pcie_generation_max or '?'}, x{width} of"
        f" x{card.pcie_width_max or '?'}"
    )
    if width < min(PCIE_WIDTH_MIN, card.pcie_width_max or PCIE_WIDTH_MIN):
        return on_card(
            card,
            check,
            "warn",
            f"{seen}, expected at least x{PCIE_WIDTH_MIN}",
            "So narrow a link is mostly a slot behind the chipset: one hop more each way, shared with disks"
            " and"
            " network.",
            "# move the card to a slot that is wired to the processor",
            f"sudo lspci -vv -s {card.bus_id} | grep -E 'LnkCap|LnkSta'",
        )
    if card.pcie_generation_max is not None and generation < card.pcie_generation_max:
        why = "The link is slower than it can be, and has to be trained anew when the card wakes."
        if card.idle is not False:
            return on_card(
                card,
                check,
                "warn",
                f"{seen}: the link is clocked down while the card idles",
                why,
                f"# it follows the clocks: lock them (see clocks of {subject(card)})",
            )
        return on_card(
            card,
            check,
            "warn",
            f"{seen}, at work",
            why,
            f"sudo lspci -vv -s {card.bus_id} | grep -E 'LnkCap|LnkSta'",
            "# then the slot's speed in the firmware's settings, and any riser cable",
        )
    return on_card(card, check, "ok", seen)


def nvlink(card: Card) -> Finding:
    """The link between cards. A model on one card does not use it; a neighbour that spans the cards does."""
    check = "NVLink"
    up = sum(card.nvlinks)
    if not up:
        bridge = "no link up (no bridge between the cards)" if card.nvlinks else "this card has none"
        return on_card(card, check, "ok", bridge)
    if up == len(card.nvlinks):
        return on_card(card, check, "ok", f"all {up} links up")
    return on_card(
        card,
        check,
        "warn",
        f"{up} of {len(card.nvlinks)} links up",
        "A neighbour that spans both cards then moves its data over fewer links for longer, and takes longer"
        " turns.",
        f"nvidia-smi nvlink --status -i {card.index}",
        "# reseat the bridge with the machine switched off",
    )


def power(card: Card) -> Finding:
    """Whether the card is near its power limit, where its clock gives way."""
    check = "power limit"
    if card.power_limit_w is None:
        return on_card(card, check, "skip", "the driver does not say")
    default = card.power_limit_default_w
    seen = f"{card.power_limit_w:.0f} W" + ("" if default is None else f" (default {default:.0f} W)")
    if card.power_w is None:
        return on_card(card, check, "ok", seen)
    seen = f"draws {card.power_w:.0f} W of {seen}"
    if card.power_w < POWER_SHARE_MAX * card.power_limit_w:
        return on_card(card, check, "ok", seen)
    lowered = default is not None and card.power_limit_w < default
    return on_card(
        card,
        check,
        "warn",
        seen,
        "At its power limit the card lowers its clock by itself, so our batches take longer whenever the"
        " neighbour"
        " works hard.",
        f"sudo nvidia-smi -i {card.index} --power-limit={default:.0f}"
        if lowered
        else f"# lock a lower clock, so that it stays below the limit (see clocks of {subject(card)})",
    )


def temperature(card: Card) -> Finding:
    """How far the card is from slowing down because of heat."""
    check = "temperature"
    if card.temperature_c is None:
        return on_card(card, check, "skip", "the driver does not say")
    if card.slowdown_c is None:
        return on_card(card, check, "ok", f"{card.temperature_c} C")
    seen = f"{card.temperature_c} C, slows down at {card.slowdown_c} C"
    if card.temperature_c < card.slowdown_c - TEMPERATURE_MARGIN_C:
        return on_card(card, check, "ok", seen)
    return on_card(
        card,
        check,
        "fail" if card.temperature_c >= card.slowdown_c else "warn",
        seen,
        "At that temperature the card halves its clock or worse, at moments that cannot be chosen.",
        f"nvidia-smi -i {card.index} --query-gpu=fan.speed,temperature.gpu,power.draw --format=csv --loop=1",
        "# better air, or less heat: sudo nvidia-smi -i "
        f"{card.index} --power-limit={0.8 * (card.power_limit_default_w or 350):.0f}",
    )


def throttling(card: Card) -> Finding:
    """Whether the card runs slower than asked at this moment."""
    check = "throttling"
    if card.slowdowns is None:
        return on_card(card, check, "skip", "the driver does not say")
    if not card.slowdowns:
        return on_card(card, check, "ok", "none")
    # The driver's own caps bend the clock by some percent; the hardware's brakes halve it.
    braked = any(word != "power cap" for word in card.slowdowns)
    return on_card(
        card,
        check,
        "fail" if braked else "warn",
        ", ".join(card.slowdowns),
        "The card runs slower than it is asked to at this moment, so every batch takes longer, by an amount"
        " that"
        " changes from one to the next.",
        f"nvidia-smi -i {card.index} --query --display=PERFORMANCE,POWER,TEMPERATURE",
    )
