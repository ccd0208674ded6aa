"""Checks of who has a card and whether there is room on it. What a card does not tell is None; its check
skips."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Final

from sigd.daemon.doctor.finding import Finding, Level
from sigd.daemon.doctor.gpus import Card, Tenant
from sigd.daemon.doctor.host import Host, format_cpus, parse_cpus
from sigd.daemon.doctor.memory import cpu_node

CONTEXT_BYTES: Final = 1 << 30
"""What a CUDA context and a TensorRT runtime take beside the engine, rounded up generously."""

_MPS_SERVER: Final = "nvidia-cuda-mps-server"


def subject(card: Card) -> str:
    """A card's name in a report."""
    return f"GPU {card.index}"


def on_card(card: Card, check: str, level: Level, what: str, why: str = "", *fix: str) -> Finding:
    """A finding about one card."""
    return Finding(check, level, what, why, fix, subject(card))


def free_memory(card: Card, engine_bytes: int | None = None) -> Finding:
    """Whether an engine still fits beside the other tenants.

    Args:
        engine_bytes: what the engine takes; None where none was named.
    """
    check = "free memory"
    if card.memory_free_bytes is None or card.memory_total_bytes is None:
        return on_card(card, check, "skip", "the driver does not say")
    needed_bytes = (engine_bytes or 0) + CONTEXT_BYTES
    free = f"{_mib(card.memory_free_bytes)} of {_mib(card.memory_total_bytes)} free"
    if card.memory_free_bytes >= needed_bytes:
        return on_card(card, check, "ok", free)
    holders = sorted(card.tenants, key=lambda tenant: -(tenant.memory_bytes or 0))
    fix = "nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv"
    if any(_is_vllm(tenant) for tenant in holders):
        fix = "# start vLLM with less, for example: vllm serve MODEL --gpu-memory-utilization 0.80"
    held = f"; {_named(holders[0])} holds {_held(holders[0])}" if holders else ""
    return on_card(
        card,
        check,
        "fail" if engine_bytes is not None and card.memory_free_bytes < engine_bytes else "warn",
        f"{free}, expected {_mib(needed_bytes)}{held}",
        "An engine needs its own memory and some hundred MiB for the CUDA context; without them the daemon"
        " ends at its"
        " start with an out-of-memory error.",
        fix,
    )


def tenants(card: Card) -> Finding:
    """Who else computes or draws on the card."""
    check = "other tenants"
    under_mps = any(_MPS_SERVER in tenant.program for tenant in card.tenants)
    others = [tenant for tenant in card.tenants if not _is_sigd(tenant) and _MPS_SERVER not in tenant.program]
    if not others:
        return on_card(card, check, "ok", "none")
    named = ", ".join(f"{_named(tenant)} ({_held(tenant)})" for tenant in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return on_card(
        card,
        check,
        "warn",
        f"{named}{more}{', under MPS' if under_mps else ''}",
        "Under MPS the processes share the card at once: our batches get fewer of its units while the other"
        " works."
        if under_mps
        else "Processes take turns on a card: a batch of ours waits until the other's turn ends, and then"
        " runs on caches"
        " that the other has filled.",
        *_apart(card, others, under_mps),
    )


def _apart(card: Card, others: Sequence[Tenant], under_mps: bool) -> list[str]:
    """How to keep the others off the card, or least in the way."""
    if any(_is_vllm(tenant) for tenant in others):
        fix = [
            f"# keep vLLM off this card: leave {card.index} out of CUDA_VISIBLE_DEVICES in its environment"
        ]
        if not under_mps:
            fix += [
                "# or let both run at once: nvidia-cuda-mps-control -d, then start vLLM with",
                (
                    "# CUDA_MPS_CLIENT_PRIORITY=1 (1 is below the normal 0) and"
                    " CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=80"
                ),
            ]
        return fix
    if all(tenant.graphics for tenant in others):
        return [
            "sudo systemctl isolate multi-user.target",
            "# and back: sudo systemctl isolate graphical.target",
        ]
    return [f"nvidia-smi -i {card.index}", "# shows them; stop them or move them to another card"]


def compute_mode(card: Card) -> Finding:
    """Whether the card lets a second process in."""
    check = "compute mode"
    if card.compute_mode is None:
        return on_card(card, check, "skip", "the driver does not say")
    taken = any(not tenant.graphics and not _is_sigd(tenant) for tenant in card.tenants)
    if card.compute_mode == "prohibited" or (card.compute_mode == "exclusive" and taken):
        return on_card(
            card,
            check,
            "fail",
            f"{card.compute_mode}" + (", and another process has the card" if taken else ""),
            "The daemon cannot open the card.",
            f"sudo nvidia-smi -i {card.index} --compute-mode=DEFAULT",
        )
    return on_card(card, check, "ok", card.compute_mode)


def persistence(card: Card) -> Finding:
    """Whether the driver keeps the card initialised when it is not used."""
    check = "persistence mode"
    if card.persistence is None:
        return on_card(card, check, "skip", "the driver does not say")
    if card.persistence:
        return on_card(card, check, "ok", "on")
    return on_card(
        card,
        check,
        "warn",
        "off",
        "When the last process leaves, the driver lets the card go: the next start takes seconds longer, and"
        " locked"
        " clocks and power limits are forgotten.",
        f"sudo nvidia-smi -i {card.index} --persistence-mode=1",
    )


def placement(card: Card, host: Host) -> Finding:
    """Whether the card hangs on the same memory node as the chosen CPU."""
    check = "placement"
    node = host.number(f"sys/bus/pci/devices/{card.bus_id}/numa_node")
    ours = cpu_node(host)
    if node is None or ours is None or node < 0:
        return on_card(card, check, "ok", "one memory node")
    if node == ours:
        return on_card(card, check, "ok", f"on node {node}, as CPU {host.cpu}")
    near = host.read(f"sys/bus/pci/devices/{card.bus_id}/local_cpulist") or ""
    return on_card(
        card,
        check,
        "warn",
        f"on node {node}, CPU {host.cpu} on node {ours}",
        "Each launch, copy and poll crosses the link between the processors, each way.",
        f"# run the daemon on one of the CPUs {format_cpus(parse_cpus(near)) or f'of node {node}'}: sigd"
        " serve --cpu N",
    )


def _is_vllm(tenant: Tenant) -> bool:
    return "vllm" in tenant.program.lower()


def _is_sigd(tenant: Tenant) -> bool:
    """A daemon of ours: `sigd serve`, whichever way it was started."""
    return re.search(r"(^|[/ ])(sigd|sigd\.daemon) ", f"{tenant.program} ") is not None


def _named(tenant: Tenant) -> str:
    name = "vLLM" if _is_vllm(tenant) else tenant.program.split()[0].rpartition("/")[2] or tenant.program
    return f"{shlex.quote(name)} pid {tenant.pid}"


def _held(tenant: Tenant) -> str:
    return "unknown memory" if tenant.memory_bytes is None else _mib(tenant.memory_bytes)


def _mib(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"
