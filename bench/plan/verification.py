"""The list of verification: what to run on the machine that was built, and what has to come out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sigd.bench.plan import links, power
from sigd.bench.plan.catalogue import parts
from sigd.bench.plan.machine import Machine

COPY_SHARE = 0.8
"""Of the nominal bandwidth: what a copy inside a card has to reach."""


@dataclass(frozen=True, slots=True)
class Verification:
    """One line: what is verified, the command, and what its output has to show."""

    what: str
    command: str
    expected: str


def verifications(machine: Machine) -> Iterator[Verification]:
    """What the machine's own description says that has to be seen on it, in the order of a first boot."""
    yield from _cards(machine)
    yield from _links(machine)
    yield from _loads(machine)
    yield from _traffic(machine)


def _cards(machine: Machine) -> Iterator[Verification]:
    names = [card.model for card in machine.cards]
    listed = ", ".join(f"GeForce {name}" for name in names)
    limits = "; ".join(f"card {number}: {machine.limit_w(number):.0f} W" for number in range(len(names)))
    yield Verification("cards", "nvidia-smi --list-gpus", f"{len(names)} lines: {listed}")
    yield Verification("all of this at once", "sigd doctor --machine MACHINE.toml", "no line says fail")
    yield Verification("power limits", "nvidia-smi --query-gpu=index,power.limit --format=csv", limits)


def _links(machine: Machine) -> Iterator[Verification]:
    count = len(machine.cards)
    if machine.board is not None:
        generation = parts().boards[machine.board.model].generation.value
        lanes = (f"card {one}: {generation:.0f}, {links.lanes_of(machine, one)}" for one in range(count))
        yield Verification(
            "lanes, under load",
            "nvidia-smi --query-gpu=index,pcie.link.gen.current,pcie.link.width.current --format=csv",
            "; ".join(lanes),
        )
        yield Verification(
            "IOMMU", "grep -o iommu=pt /proc/cmdline", "iommu=pt, on an AMD processor with two cards"
        )
    if count > 1:
        yield Verification(
            "topology",
            "nvidia-smi topo -m",
            "NV4 between the cards" if machine.nvlink else "PHB or PXB between the cards, no NV",
        )
        yield Verification(
            "an exchange with its result checked",
            f"all_reduce_perf -b 1K -e 64M -f 2 -g {count} -c 1     (nccl-tests)",
            "0 in every column #wrong; the bus bandwidth of the table of links",
        )


def _loads(machine: Machine) -> Iterator[Verification]:
    bandwidth = min(parts().cards[card.model].bandwidth.value for card in machine.cards)
    yield Verification(
        "memory bandwidth",
        "nvbandwidth -t device_local_copy     (it knows GeForce cards)",
        f"{COPY_SHARE * bandwidth:.0f} GB/s or more on each card",
    )
    yield Verification(
        "heat",
        "gpu_burn 600, with nvidia-smi dmon -s pct beside it",
        "no clock falls, the GPU below 83 C",
    )
    if machine.supply is not None:
        wall = power.wall_w(power.dc_w(machine), machine.supply.rating_w)
        yield Verification(
            "draw from the wall",
            "a meter at the plug, under gpu_burn",
            f"{wall.high:.0f} W at most",
        )
    if machine.drive is not None:
        read = parts().drives[machine.drive.model].read.range
        yield Verification(
            "disk",
            "fio --name=read --rw=read --bs=1M --size=20G --direct=1 --iodepth=16 --ioengine=io_uring",
            f"{read.low:.1f} to {read.high:.1f} GB/s",
        )


def _traffic(machine: Machine) -> Iterator[Verification]:
    if machine.nic is not None:
        rate = parts().nics[machine.nic.model].rate.value
        payload = links.payload_gbit_s(rate, machine.nic.mtu)
        yield Verification(
            "network",
            "iperf3 --client FAR_END --parallel 4",
            f"{payload - 0.1:.1f} to {payload:.1f} Gbit/s",
        )
    yield Verification(
        "language model",
        "vllm bench serve --model MODEL --num-prompts 64 --max-concurrency 1",
        "the tokens/s of the table of language models",
    )
    yield Verification(
        "signals",
        "sigd bench --closed-loop --floor --idle spin",
        "p99 below 100 us; never assumed from another card",
    )
    yield Verification(
        "signals beside a language model",
        "sigd bench --neighbour 'vllm bench serve ...'",
        "no change of p99 while the model is on another card",
    )
