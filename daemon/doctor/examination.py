"""Runs the checks in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sigd.daemon.doctor import card_errors, card_speed, cards, engine, memory, nvml, processor, system
from sigd.daemon.doctor.expect import Expected, cards_expected
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.gpus import Card, Gpus
from sigd.daemon.doctor.host import Host
from sigd.daemon.doctor.nvml import NoCards

if TYPE_CHECKING:
    from sigd.models.manifest import RuntimeName

HOST_CHECKS: Final[tuple[Callable[[Host], Finding], ...]] = (
    system.kernel,
    system.clock_source,
    *processor.CORE_CHECKS,
    processor.quota,
    memory.huge_pages,
    memory.locked_memory,
    memory.swap,
    memory.numa,
    system.realtime,
    system.virtual_machine,
    system.container,
    system.compiler,
    system.native_kernels,
)

CARD_CHECKS: Final[tuple[Callable[[Card], Finding], ...]] = (
    cards.tenants,
    cards.compute_mode,
    cards.persistence,
    card_speed.clocks,
    card_speed.throttling,
    card_speed.power,
    card_speed.temperature,
    card_speed.pcie,
    card_speed.nvlink,
    card_errors.memory_errors,
)


def examine_host(host: Host) -> list[Finding]:
    """All checks of the machine without its cards."""
    return [check(host) for check in HOST_CHECKS]


def examine_cards(
    host: Host,
    load: Callable[[Host], Any] = nvml.load,
    expected: Sequence[Expected] = (),
    engine_file: Path | None = None,
    runtimes: dict[RuntimeName, engine.Runtime] | None = None,
) -> list[Finding]:
    """All checks of the cards, and of an engine against the first of them.

    Args:
        load: gives the NVML library; raises NoCards where there is none.
        expected: cards that must be there.
        engine_file: an engine with its manifest beside it; None for none.
        runtimes: what is installed; None looks.
    """
    runtimes = engine.installed_runtimes() if runtimes is None else runtimes
    manifest = None if engine_file is None else engine.manifest_of(engine_file)
    try:
        gpus = nvml.read(load(host), host)
    except NoCards as none:
        findings = [none.finding, *cards_expected(expected, ())]
        gpus = Gpus(None, None, ())
    else:
        findings = [engine.driver_fits(gpus, runtimes, manifest), *cards_expected(expected, gpus.cards)]
    first = engine.first_card(gpus.cards)
    if engine_file is not None:
        findings.append(engine.engine_fits(engine_file, runtimes, first))
    kernel_log = host.kernel_log()
    for card in gpus.cards:
        needed = engine.needed_bytes(manifest) if manifest is not None and card is first else None
        findings += _one_card(card, host, kernel_log, needed)
    return findings


def _one_card(
    card: Card, host: Host, kernel_log: Sequence[str] | None, needed_bytes: int | None
) -> list[Finding]:
    if card.lost is not None:
        return [card_errors.identity(card), card_errors.driver_errors(card, kernel_log)]
    return [
        card_errors.identity(card),
        cards.free_memory(card, needed_bytes),
        *(check(card) for check in CARD_CHECKS),
        card_errors.driver_errors(card, kernel_log),
        cards.placement(card, host),
    ]
