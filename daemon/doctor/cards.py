"""Checks of each graphics card. A card's own words are in `nvml.Card`; None there is a check that skips."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final

from sigd.daemon.doctor.finding import Finding, Level
from sigd.daemon.doctor.host import Host, format_cpus, parse_cpus
from sigd.daemon.doctor.memory import cpu_node
from sigd.daemon.doctor.nvml import Card, Tenant

CONTEXT_BYTES: Final = 1 << 30
"""What a CUDA context and a TensorRT runtime take beside the engine, rounded up generously."""

HELD_CLOCK_SHARE: Final = 0.75
"""A card whose SM clock is above this share of its highest is taken to be held up or working."""

PCIE_WIDTH_MIN: Final = 8
POWER_SHARE_MAX: Final = 0.95
TEMPERATURE_MARGIN_C: Final = 10

_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")
_XID_OF_HARDWARE: Final = frozenset({48, 61, 62, 64, 74, 79, 92, 94, 95, 119, 120, 140})
"""Xid errors that NVIDIA's list lays to the card, its memory, its firmware or the bus, not to a program."""


def subject(card: Card) -> str:
    """A card's name in a report."""
    return f"GPU {card.index}"


def _finding(card: Card, check: str, level: Level, what: str, why: str = "", *mend: str) -> Finding:
    return Finding(check, level, what, why, mend, subject(card))


def identity(card: Card) -> Finding:
    """Which card it is, and whether it answers at all."""
    if card.lost is not None:
        return _finding(
            card,
            "card",
            "fail",
            f"does not answer: {card.lost}",
            "A model on it answers nothing; a daemon that serves from it has to be started again once it is back.",
            "sudo dmesg | grep -i -E 'nvrm|xid'",
            "sudo reboot",
        )
    capability = (
        ""
        if card.compute_capability is None
        else ", compute capability {}.{}".format(*card.compute_capability)
    )
    return _finding(card, "card", "ok", f"{card.name}{capability}, PCI {card.bus_id}")


def free_memory(card: Card, engine_bytes: int | None = None) -> Finding:
    """Whether an engine still fits beside the other tenants.

    Args:
        engine_bytes: what the engine takes; None where none was named.
    """
    check = "free memory"
    if card.memory_free_bytes is None or card.memory_total_bytes is None:
        return _finding(card, check, "skip", "the driver does not say")
    needed_bytes = (engine_bytes or 0) + CONTEXT_BYTES
    free = f"{_mib(card.memory_free_bytes)} of {_mib(card.memory_total_bytes)} free"
    if card.memory_free_bytes >= needed_bytes:
        return _finding(card, check, "ok", free)
    holders = sorted(card.tenants, key=lambda tenant: -(tenant.memory_bytes or 0))
    mend = "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv"
    if any(_is_vllm(tenant) for tenant in holders):
        mend = "# start vLLM with less, for example: vllm serve MODEL --gpu-memory-utilization 0.80"
    held = f"; {_named(holders[0])} holds {_mib(holders[0].memory_bytes or 0)}" if holders else ""
    return _finding(
        card,
        check,
        "fail" if engine_bytes is not None and card.memory_free_bytes < engine_bytes else "warn",
        f"{free}, expected {_mib(needed_bytes)}{held}",
        "An engine needs its own memory and some hundred MiB for the CUDA context; without them the daemon ends at its"
        " start with an out-of-memory error.",
        mend,
    )


def tenants(card: Card) -> Finding:
    """Who else computes or draws on the card."""
    check = "other tenants"
    others = [tenant for tenant in card.tenants if not _is_sigd(tenant)]
    if not others:
        return _finding(card, check, "ok", "none")
    named = ", ".join(f"{_named(tenant)} ({_mib(tenant.memory_bytes or 0)})" for tenant in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    mend = []
    if any(_is_vllm(tenant) for tenant in others):
        mend.append(
            f"# give vLLM the other cards: CUDA_VISIBLE_DEVICES must not list {card.index} in its environment"
        )
        mend.append(
            "# or let both run at once under MPS: nvidia-cuda-mps-control -d, and vLLM after it, started with"
        )
        mend.append("# CUDA_MPS_CLIENT_PRIORITY=1 (below sigd's 0) CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=80")
    elif all(tenant.graphics for tenant in others):
        mend.append(
            "sudo systemctl isolate multi-user.target  # no desktop until: systemctl isolate graphical.target"
        )
    else:
        mend.append(f"nvidia-smi -i {card.index}  # shows them; stop them or move them to another card")
    return _finding(
        card,
        check,
        "warn",
        f"{named}{more}",
        "Processes take turns on a card: a batch of ours waits until the other's turn ends, and then runs on caches"
        " that the other has filled.",
        *mend,
    )


def compute_mode(card: Card) -> Finding:
    """Whether the card lets a second process in."""
    check = "compute mode"
    if card.compute_mode is None:
        return _finding(card, check, "skip", "the driver does not say")
    taken = any(not tenant.graphics and not _is_sigd(tenant) for tenant in card.tenants)
    if card.compute_mode == "prohibited" or (card.compute_mode == "exclusive" and taken):
        return _finding(
            card,
            check,
            "fail",
            f"{card.compute_mode}" + (", and another process has the card" if taken else ""),
            "The daemon cannot open the card.",
            f"sudo nvidia-smi -i {card.index} --compute-mode=DEFAULT",
        )
    return _finding(card, check, "ok", card.compute_mode)


def persistence(card: Card) -> Finding:
    """Whether the driver keeps the card initialised when nobody uses it."""
    check = "persistence mode"
    if card.persistence is None:
        return _finding(card, check, "skip", "the driver does not say")
    if card.persistence:
        return _finding(card, check, "ok", "on")
    return _finding(
        card,
        check,
        "warn",
        "off",
        "When the last process leaves, the driver lets the card go: the next start takes seconds longer, and locked"
        " clocks and power limits are forgotten.",
        f"sudo nvidia-smi -i {card.index} --persistence-mode=1",
    )


def clocks(card: Card) -> Finding:
    """Whether the card keeps its clock when it has nothing to do. NVML has no reading for locked clocks, so it is
    judged by the clock of this moment."""
    check = "clocks"
    if card.sm_clock_mhz is None or not card.sm_clock_max_mhz:
        return _finding(card, check, "skip", "the driver does not say")
    state = "" if card.performance_state is None else f", performance state P{card.performance_state}"
    seen = f"SM clock {card.sm_clock_mhz} of {card.sm_clock_max_mhz} MHz{state}"
    if card.sm_clock_mhz >= HELD_CLOCK_SHARE * card.sm_clock_max_mhz:
        working = card.idle is False and bool(card.tenants)
        judged = "working now, so whether they are locked does not show" if working else "held up while idle"
        return _finding(card, check, "ok", f"{seen}; {judged}")
    if card.idle is False and card.slowdowns:
        return _finding(card, check, "warn", f"{seen}; slowed down", *_SLOWED)
    # Four fifths of the highest clock, in the steps of 15 MHz that cards have: most hold that under any load.
    lock_mhz = int(card.sm_clock_max_mhz * 0.8) // 15 * 15
    return _finding(
        card,
        check,
        "warn",
        f"{seen}: not locked",
        "The card clocks down when it has nothing to do, and the first batches after a pause run slowly until"
        " it has clocked up again.",
        f"sudo nvidia-smi -i {card.index} --lock-gpu-clocks={lock_mhz},{lock_mhz}",
    )


_SLOWED = ("A slower clock makes every batch longer.", "# see throttling below")


def pcie(card: Card) -> Finding:
    """The link that each batch crosses twice."""
    check = "PCIe"
    generation, width = card.pcie_generation, card.pcie_width
    if generation is None or width is None:
        return _finding(card, check, "skip", "the driver does not say")
    seen = f"generation {generation} of {card.pcie_generation_max or '?'}, x{width} of x{card.pcie_width_max or '?'}"
    if width < min(PCIE_WIDTH_MIN, card.pcie_width_max or PCIE_WIDTH_MIN):
        return _finding(
            card,
            check,
            "warn",
            f"{seen}, expected at least x{PCIE_WIDTH_MIN}",
            "So narrow a link is mostly a slot behind the chipset: one hop more each way, shared with disks and"
            " network.",
            "# move the card to a slot that is wired to the processor",
            f"sudo lspci -vv -s {card.bus_id} | grep -E 'LnkCap|LnkSta'",
        )
    if card.pcie_generation_max is not None and generation < card.pcie_generation_max:
        why = "The link is slower than it can be, and has to be trained anew when the card wakes."
        if card.idle is not False:
            return _finding(
                card,
                check,
                "warn",
                f"{seen}: the link is clocked down while the card idles",
                why,
                f"# it follows the clocks: lock them (see clocks of {subject(card)})",
            )
        return _finding(
            card,
            check,
            "warn",
            f"{seen}, at work",
            why,
            f"sudo lspci -vv -s {card.bus_id} | grep -E 'LnkCap|LnkSta'",
            "# then the slot's speed in the firmware's settings, and any riser cable",
        )
    return _finding(card, check, "ok", seen)


def nvlink(card: Card) -> Finding:
    """The link between cards. A model on one card does not use it; a neighbour that spans the cards does."""
    check = "NVLink"
    up = sum(card.nvlinks)
    if not up:
        bridge = "no link up (no bridge between the cards)" if card.nvlinks else "this card has none"
        return _finding(card, check, "ok", bridge)
    if up == len(card.nvlinks):
        return _finding(card, check, "ok", f"all {up} links up")
    return _finding(
        card,
        check,
        "warn",
        f"{up} of {len(card.nvlinks)} links up",
        "A neighbour that spans both cards then moves its data over fewer links for longer, and takes longer turns.",
        f"nvidia-smi nvlink --status -i {card.index}",
        "# reseat the bridge with the machine switched off",
    )


def power(card: Card) -> Finding:
    """Whether the card is near its power limit, where its clock gives way."""
    check = "power limit"
    if card.power_limit_w is None:
        return _finding(card, check, "skip", "the driver does not say")
    default = card.power_limit_default_w
    seen = f"{card.power_limit_w:.0f} W" + ("" if default is None else f" (default {default:.0f} W)")
    if card.power_w is None:
        return _finding(card, check, "ok", seen)
    seen = f"draws {card.power_w:.0f} W of {seen}"
    if card.power_w < POWER_SHARE_MAX * card.power_limit_w:
        return _finding(card, check, "ok", seen)
    lowered = default is not None and card.power_limit_w < default
    return _finding(
        card,
        check,
        "warn",
        seen,
        "At its power limit the card lowers its clock by itself, so our batches take longer whenever the neighbour"
        " works hard.",
        f"sudo nvidia-smi -i {card.index} --power-limit={default:.0f}"
        if lowered
        else f"# lock a lower clock, so that it stays below the limit (see clocks of {subject(card)})",
    )


def temperature(card: Card) -> Finding:
    """How far the card is from slowing down because of heat."""
    check = "temperature"
    if card.temperature_c is None:
        return _finding(card, check, "skip", "the driver does not say")
    if card.slowdown_c is None:
        return _finding(card, check, "ok", f"{card.temperature_c} C")
    seen = f"{card.temperature_c} C, slows down at {card.slowdown_c} C"
    if card.temperature_c < card.slowdown_c - TEMPERATURE_MARGIN_C:
        return _finding(card, check, "ok", seen)
    return _finding(
        card,
        check,
        "fail" if card.temperature_c >= card.slowdown_c else "warn",
        seen,
        "At that temperature the card halves its clock or worse, at moments nobody chooses.",
        f"nvidia-smi -i {card.index} --query-gpu=fan.speed,temperature.gpu,power.draw --format=csv --loop=1",
        "# better air, or less heat: sudo nvidia-smi -i "
        f"{card.index} --power-limit={0.8 * (card.power_limit_default_w or 350):.0f}",
    )


def throttling(card: Card) -> Finding:
    """Whether the card runs slower than asked at this moment."""
    check = "throttling"
    if card.slowdowns is None:
        return _finding(card, check, "skip", "the driver does not say")
    if not card.slowdowns:
        return _finding(card, check, "ok", "none")
    # The driver's own caps bend the clock by some percent; the hardware's brakes halve it.
    braked = any(word != "power cap" for word in card.slowdowns)
    return _finding(
        card,
        check,
        "fail" if braked else "warn",
        ", ".join(card.slowdowns),
        "The card runs slower than it is asked to at this moment, so every batch takes longer, by an amount that"
        " changes from one to the next.",
        f"nvidia-smi -i {card.index} --query --display=PERFORMANCE,POWER,TEMPERATURE",
    )


def memory_errors(card: Card) -> Finding:
    """Whether the card's memory has made errors that it could not correct (ECC)."""
    check = "ECC"
    if card.ecc is None:
        return _finding(card, check, "skip", "this card has no error correction")
    if not card.ecc:
        return _finding(card, check, "ok", "switched off")
    if not card.ecc_uncorrected:
        return _finding(card, check, "ok", "on, no uncorrected error since the driver was loaded")
    return _finding(
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
        return _finding(
            card, check, "skip", "the kernel's log may not be read: run as root, or sudo dmesg | grep -i xid"
        )
    found = [
        int(match[2]) for match in map(_XID.search, kernel_log) if match and _same_slot(match[1], card.bus_id)
    ]
    if not found:
        return _finding(card, check, "ok", "none in the kernel's log")
    of_hardware = _XID_OF_HARDWARE.intersection(found)
    named = ", ".join(f"{xid} ({found.count(xid)} times)" for xid in sorted(set(found)))
    return _finding(
        card,
        check,
        "fail" if of_hardware else "warn",
        named,
        "The driver lays at least one of these to the card or the bus: it will come again, and ends whatever runs."
        if of_hardware
        else "A program on this card was ended by the driver; the others on it stood still meanwhile.",
        "sudo dmesg | grep -i xid",
        "# what each number means: https://docs.nvidia.com/deploy/xid-errors/",
    )


def _same_slot(logged: str, bus_id: str) -> bool:
    """The driver logs "0000:01:00" for the card at "0000:01:00.0"."""
    return bus_id.partition(".")[0] == logged.lower().partition(".")[0]


def placement(card: Card, host: Host) -> Finding:
    """Whether the card hangs on the same memory node as the chosen CPU."""
    check = "placement"
    node = host.number(f"sys/bus/pci/devices/{card.bus_id}/numa_node")
    ours = cpu_node(host)
    if node is None or ours is None or node < 0:
        return _finding(card, check, "ok", "one memory node")
    if node == ours:
        return _finding(card, check, "ok", f"on node {node}, as CPU {host.cpu}")
    near = host.read(f"sys/bus/pci/devices/{card.bus_id}/local_cpulist") or ""
    return _finding(
        card,
        check,
        "warn",
        f"on node {node}, CPU {host.cpu} on node {ours}",
        "Each launch, copy and poll crosses the link between the processors, each way.",
        f"# run the daemon on one of the CPUs {format_cpus(parse_cpus(near)) or f'of node {node}'}: sigd serve --cpu N",
    )


def _is_vllm(tenant: Tenant) -> bool:
    return "vllm" in tenant.program.lower()


def _is_sigd(tenant: Tenant) -> bool:
    """A daemon of ours: `sigd serve`, whichever way it was started."""
    return re.search(r"(^|[/ ])(sigd|sigd\.daemon) ", f"{tenant.program} ") is not None


def _named(tenant: Tenant) -> str:
    name = "vLLM" if _is_vllm(tenant) else tenant.program.split()[0].rpartition("/")[2] or tenant.program
    return f"{shlex.quote(name)} pid {tenant.pid}"


def _mib(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"
