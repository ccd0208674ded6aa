"""Verdicts on the machine itself: power, heat, lanes, memory, disk, network."""

from __future__ import annotations

from collections.abc import Iterator

from sigd.bench.plan import links, memory, power, speed
from sigd.bench.plan.catalogue import language_models, parts
from sigd.bench.plan.machine import Machine
from sigd.bench.plan.ranges import Range, exactly
from sigd.bench.plan.verdict import Harm, Verdict, judge, reaches


def of_machine(machine: Machine) -> Iterator[Verdict]:
    """Verdicts on everything that the file describes; what it leaves out is not judged."""
    yield from _power(machine)
    yield from _heat(machine)
    yield from _slots(machine)
    yield from _host(machine)
    yield from _disk(machine)
    yield from _network(machine)


def _power(machine: Machine) -> Iterator[Verdict]:
    if machine.supply is None:
        return
    rating = machine.supply.rating_w
    dc, peak = power.dc_w(machine), power.transient_w(machine)
    capped = _cap(machine)
    level = judge(dc, exactly(rating))
    yield Verdict(
        area="power",
        subject="supply, steady",
        level=level,
        why=f"{dc.best:.0f} W DC of {rating:.0f} W, which is what the supply delivers; headroom"
        f" {rating - dc.high:.0f} W at the highest",
        fix="" if level == "fits" else capped,
        harm=Harm.MACHINE_STOPS,
        unit="W DC",
        need=dc,
        limit=exactly(rating),
    )
    bears = power.excursion_w(machine.supply.standard, rating)
    level = judge(peak, bears)
    yield Verdict(
        area="power",
        subject="supply, milliseconds",
        level=level,
        why=f"peaks of {peak.best:.0f} W when all cards peak at once; an {machine.supply.standard.upper()}"
        " supply of"
        f" {rating:.0f} W promises {bears.low:.0f} W",
        fix="" if level == "fits" else f"{capped}; or an ATX 3 supply",
        harm=Harm.MACHINE_STOPS,
        unit="W DC",
        need=peak,
        limit=bears,
    )
    if machine.battery is None:
        return
    wall, believed = power.wall_w(dc, rating), machine.battery.rating_w
    known = parts().supply.battery.value
    bears = power.battery_w(machine.battery.rating_w)
    level = judge(wall, bears)
    yield Verdict(
        area="power",
        subject="battery (UPS)",
        level=level,
        why=f"{wall.best:.0f} W AC at the wall; the battery bears {bears.low:.0f} W"
        + ("" if believed == known else f", the plan says {believed:.0f}"),
        fix="" if level == "fits" else capped,
        harm=Harm.MACHINE_STOPS,
        unit="W AC",
        need=wall,
        limit=bears,
    )


def _cap(machine: Machine) -> str:
    """The highest power limit with which supply and battery fit, as advice."""
    cap = power.highest_cap_w(machine)
    if cap is None:
        return (
            "take out a card, or buy a stronger supply and battery: no power limit that a card keeps is"
            " enough"
        )
    return f"set a power limit of {cap:.0f} W a card at boot (nvidia-smi --power-limit={cap:.0f})"


def _heat(machine: Machine) -> Iterator[Verdict]:
    if machine.supply is not None:
        wall = power.wall_w(power.dc_w(machine), machine.supply.rating_w)
        air = Range(*(power.airflow_m3_h(heat) for heat in (wall.low, wall.best, wall.high)))
        moved = machine.fans.airflow_m3_h if machine.fans is not None else None
        level = "tight" if moved is None else judge(air, exactly(moved))
        yield Verdict(
            area="thermal",
            subject="case and room",
            level=level,
            why=f"{wall.best:.0f} W of heat; at 10 K over the room the case needs {air.best:.0f} m3/h"
            f" ({air.best * power.CFM_PER_M3_H:.0f} CFM)"
            + ("; the fans' airflow is not given" if moved is None else ""),
            fix="" if level == "fits" else "give the case that much air, and the room its heat's way out",
            harm=Harm.SLOWER,
            unit="m3/h",
            need=air,
            limit=None if moved is None else exactly(moved),
        )
    fans = machine.fans
    if fans is not None and fans.planned is not None and fans.planned != fans.bought:
        yield Verdict(
            area="thermal",
            subject="fans",
            level="tight",
            why=f"{fans.planned} fans are planned, the list of parts has {fans.bought}",
            fix="count the fans that come with the case, and buy the rest",
        )
    hot = [card.model for card in machine.cards if parts().cards[card.model].memory_limit is not None]
    if hot:
        limit = parts().cards[hot[0]].memory_limit
        assert limit is not None
        yield Verdict(
            area="thermal",
            subject="card memory",
            level="tight",
            why=f"GDDR6X is rated to about {limit.value:.0f} C, half of an RTX 3090's chips sit on its back,"
            " and the"
            " driver shows no sensor on Linux",
            fix="cool the back of the cards, cap their power, and read the sensor once under load (as root,"
            " gddr6)",
            harm=Harm.DAMAGE,
        )


def _slots(machine: Machine) -> Iterator[Verdict]:
    board = machine.board
    if board is None:
        return
    generation = int(parts().boards[board.model].generation.value)
    for number, card in enumerate(machine.cards):
        real = links.lanes_of(machine, number)
        assert real is not None
        planned = card.slot_lanes or real
        rate = links.link_gb_s(real, generation)
        yield Verdict(
            area="links",
            subject=f"slot of card {number}",
            level="fits" if planned <= real else "does not fit",
            why=f"x{real} of PCIe {generation}.0, {rate:.2f} GB/s a direction"
            + ("" if planned <= real else f"; the plan has x{planned}, for which the processor lacks lanes"),
            fix="" if planned <= real else "plan with this rate, or take a platform with more lanes",
            harm=Harm.SLOWER,
            unit="GB/s",
            need=exactly(links.link_gb_s(planned, generation)),
            limit=exactly(rate),
        )
    if len(machine.cards) > 1:
        yield from _exchange(machine)


def _exchange(machine: Machine) -> Iterator[Verdict]:
    assert machine.board is not None
    model = language_models().models["llama-3.1-70b"]
    way = links.exchange_way(machine)
    one = speed.all_reduce_s(model, 1, speed.exchange(way)).times(1e3)
    many = speed.all_reduce_s(model, 2048, speed.exchange(way)).times(1e3)
    named = {"host": "through host memory", "p2p": "peer to peer", "nvlink": "over the bridge"}[way]
    yield Verdict(
        area="links",
        subject="exchange between cards",
        level="tight" if way == "p2p" else "fits",
        why=f"{named}: a step of a 70B model exchanges for {one.best:.1f} ms, a prompt of 2,048 tokens for"
        f" {many.best:.0f} ms"
        + ("; a patched driver has returned wrong results in vLLM" if way == "p2p" else ""),
        fix="start vLLM with --disable-custom-all-reduce" if way == "p2p" else "",
        harm=Harm.DAMAGE if way == "p2p" else Harm.UNCERTAIN,
        unit="ms a step",
        need=one,
    )
    if not machine.board.iommu_passthrough:
        yield Verdict(
            area="links",
            subject="IOMMU",
            level="tight",
            why="in translated mode AMD's IOMMU has stopped pairs of cards (IO_PAGE_FAULT, Xid 154) under"
            " tensor"
            " parallelism",
            fix="boot with iommu=pt, and set iommu_passthrough = true in this file",
            harm=Harm.MACHINE_STOPS,
        )


def _host(machine: Machine) -> Iterator[Verdict]:
    if machine.memory is None or machine.board is None:
        return
    official = parts().boards[machine.board.model].memory_officially.value
    fast = machine.memory.mts > official and machine.memory.modules >= 4
    yield Verdict(
        area="memory",
        subject="host memory",
        level="tight" if fast else "fits",
        why=f"{machine.memory.modules} x {machine.memory.module_gb} GB at {machine.memory.mts} MT/s,"
        f" {speed.host_rate(machine.memory.mts) / 1e9:.1f} GB/s at most"
        + (f"; four dual-rank modules are specified to {official:.0f}" if fast else ""),
        fix="test it for a night (memtest86+), or run it at 3200 MT/s or less" if fast else "",
        harm=Harm.UNCERTAIN,
        unit="MT/s",
        need=exactly(machine.memory.mts),
        limit=exactly(official),
    )


def _disk(machine: Machine) -> Iterator[Verdict]:
    if machine.drive is None:
        return
    drive = parts().drives[machine.drive.model]
    sizes = [size.value for size in drive.sizes]
    made = machine.drive.size_tb in sizes
    yield Verdict(
        area="disk",
        subject=f"{machine.drive.model} {machine.drive.size_tb:g} TB",
        level="fits" if made else "does not fit",
        why="is made" if made else f"is not made: there are {', '.join(f'{size:g}' for size in sizes)} TB",
        fix="" if made else f"buy {min(sizes):g} TB or more",
        harm=Harm.WRONG_PART,
    )
    for work in machine.work:
        if work.kind == "serve":
            size = memory.bytes_of(
                language_models().models[work.model], language_models().weights[work.weights]
            ).best
            reading, starting = speed.load_s(size, drive.read.range), parts().serving.startup.range
            yield Verdict(
                area="disk",
                subject=f"start of {work.name}",
                level="fits",
                why=f"{size / 1e9:.1f} GB are read in {reading.low:.0f} to {reading.high:.0f} s; then the"
                " engine"
                f" compiles for {starting.low:.0f} to {starting.high:.0f} s",
                unit="s",
                need=reading + starting,
            )


def _network(machine: Machine) -> Iterator[Verdict]:
    if machine.sigd is not None and machine.sigd.link == "unix":
        yield Verdict(
            area="network",
            subject="link to the trading engine",
            level="does not fit",
            why="a Unix socket does not leave its machine",
            fix="forward the socket over SSH: docs/tunnel.md",
            harm=Harm.DOES_NOT_START,
        )
    if machine.nic is None:
        return
    nic = machine.nic
    part = parts().nics[nic.model]
    payload = links.payload_gbit_s(part.rate.value, nic.mtu)
    level = reaches(Range(payload - 0.1, payload, payload), nic.wanted_gbit_s)
    yield Verdict(
        area="network",
        subject="payload of one port",
        level=level,
        why=f"{payload:.2f} Gbit/s of TCP payload at most with an MTU of {nic.mtu}"
        + (f"; the plan asks for {nic.wanted_gbit_s:g}" if nic.wanted_gbit_s else ""),
        fix="" if level == "fits" else "set an MTU of 9000 at both ends, or expect 9.3",
        harm=Harm.SLOWER,
        unit="Gbit/s",
        need=Range(payload - 0.1, payload, payload),
        limit=exactly(nic.wanted_gbit_s),
    )
    left = links.nic_lanes(machine)
    lanes = nic.lanes if left is None else min(nic.lanes, left)
    slot, ports = (
        links.link_gb_s(lanes, int(part.generation.value)),
        nic.ports * part.rate.value / 8,
    )
    yield Verdict(
        area="network",
        subject="slot of the network card",
        level="fits" if ports <= slot else "does not fit",
        why=f"x{lanes} of PCIe {part.generation.value:.0f}.0 carries {slot:.1f} GB/s, {nic.ports} port(s)"
        f" {ports:.2f}"
        + (
            ""
            if lanes == nic.lanes
            else f"; the plan has x{nic.lanes}, but the cards have the processor's slots"
        ),
        fix="" if ports <= slot else "use one port",
        harm=Harm.SLOWER,
        unit="GB/s",
        need=exactly(ports),
        limit=exactly(slot),
    )
    if nic.far_end != "sfp+":
        yield Verdict(
            area="network",
            subject="plug of the far end",
            level="tight",
            why=f"{nic.model} takes SFP+; the far end is {nic.far_end}",
            fix="take a Thunderbolt adapter with SFP+, or an SFP+ module for 10GBASE-T",
            harm=Harm.WRONG_PART,
        )
