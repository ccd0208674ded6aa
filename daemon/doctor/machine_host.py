"""Checks of the host against the description of the machine: IOMMU, disk, network, what PyTorch sees."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from typing import Final

import msgspec

from sigd.daemon.doctor.commands import Run
from sigd.daemon.doctor.finding import Finding, Level, boot_parameters
from sigd.daemon.doctor.host import Host

_SUBJECT: Final = "machine"
_IPERF_SECONDS: Final = 5
_TRANSLATED: Final = frozenset({"DMA", "DMA-FQ"})
_COUNT: Final = "import torch; print(torch.cuda.device_count())"


class ExpectedNetwork(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The network card of the description: the rate of a port, the MTU, and the payload to be reached."""

    rate_gbit_s: float
    mtu: int
    payload_gbit_s: float


def _finding(check: str, level: Level, what: str, why: str = "", *fix: str) -> Finding:
    return Finding(check, level, what, why, fix, _SUBJECT)


def iommu(host: Host, cards: int) -> Finding:
    """Whether the IOMMU translates what the cards exchange."""
    check = "IOMMU"
    booted = "iommu=pt" in (host.read("proc/cmdline") or "").split()
    if not host.names("sys/class/iommu"):
        return _finding(check, "ok", "none, or off: nothing is translated")
    kinds = {
        kind
        for device in host.names("sys/bus/pci/devices")
        if host.read(f"sys/bus/pci/devices/{device}/vendor") == "0x10de"
        and (host.read(f"sys/bus/pci/devices/{device}/class") or "").startswith("0x03")
        and (kind := host.read(f"sys/bus/pci/devices/{device}/iommu_group/type")) is not None
    }
    seen = f"{', '.join(sorted(kinds)) or 'mode of the cards not told'}, expected identity (iommu=pt)"
    if kinds and not kinds & _TRANSLATED:
        return _finding(check, "ok", seen)
    if not kinds and booted:
        return _finding(check, "ok", f"{seen}; booted with iommu=pt")
    if cards < 2:
        return _finding(check, "ok", f"{seen}; one card exchanges with no other")
    return _finding(
        check,
        "warn",
        seen,
        "Exchange between two cards can end in IO_PAGE_FAULT and Xid 154 under tensor parallelism.",
        *boot_parameters("iommu", "iommu=pt"),
    )


def drive(host: Host, model: str | None) -> Finding:
    """Whether the disk of the description is there, and at its link's full speed."""
    check = "NVMe"
    if model is None:
        return _finding(check, "skip", "the description names no disk")
    found = {name: host.read(f"sys/class/nvme/{name}/model") or "" for name in host.names("sys/class/nvme")}
    matching = [name for name, seen in found.items() if model.lower() in seen.lower()]
    if not found:
        return _finding(check, "skip", f"expected {model}; this machine shows no NVMe disk")
    if not matching:
        return _finding(
            check,
            "warn",
            f"{', '.join(found.values())}; expected {model}",
            "Models load at another speed than planned.",
            "ls /sys/class/nvme/*/model",
        )
    at = f"sys/class/nvme/{matching[0]}/device"
    now, most = host.read(f"{at}/current_link_width"), host.read(f"{at}/max_link_width")
    speed = (host.read(f"{at}/current_link_speed") or "").partition(" PCIe")[0]
    seen = f"{found[matching[0]]}, x{now or '?'} at {speed or '? GT/s'}, expected {model} at x{most or '?'}"
    if now is not None and most is not None and int(now) < int(most):
        return _finding(
            check,
            "warn",
            seen,
            "The slot gives the disk fewer lanes than it has: models load that much more slowly.",
            "# move the disk to the slot that is wired to the processor",
        )
    return _finding(check, "ok", seen)


def network(host: Host, expected: ExpectedNetwork | None) -> list[Finding]:
    """Whether a port has the rate and the MTU of the description."""
    check = "10GbE"
    if expected is None:
        return [_finding(check, "skip", "the description names no network card")]
    rate = expected.rate_gbit_s * 1000
    wanted = f"expected {expected.rate_gbit_s:g} Gbit/s and an MTU of {expected.mtu}"
    ports = {
        name: (host.number(f"sys/class/net/{name}/speed") or 0, host.number(f"sys/class/net/{name}/mtu") or 0)
        for name in host.names("sys/class/net")
        if host.has(f"sys/class/net/{name}/device")
    }
    fast = {name: mtu for name, (speed, mtu) in ports.items() if speed >= rate}
    if not ports:
        return [_finding(check, "skip", f"{wanted}; this machine shows no port")]
    if not fast:
        seen = ", ".join(f"{name} {speed} Mbit/s" for name, (speed, _) in ports.items())
        return [
            _finding(
                check,
                "fail",
                f"{seen}; {wanted}",
                "The link is down, or has fallen back to a lower rate.",
                "# cable, module and the far end's port; then: ip -details link",
            )
        ]
    name, mtu = max(fast.items(), key=lambda port: port[1])
    seen = f"{name} at {ports[name][0] // 1000} Gbit/s, MTU {mtu}; {wanted}"
    if mtu < expected.mtu:
        return [
            _finding(
                check,
                "warn",
                seen,
                "Smaller packets carry less payload.",
                f"sudo ip link set dev {name} mtu {expected.mtu}",
            )
        ]
    return [_finding(check, "ok", seen)]


def throughput(host: Host, command: Run, expected: ExpectedNetwork | None, far_end: str | None) -> Finding:
    """What TCP carries to the far end, by iperf3."""
    check = "payload"
    if expected is None:
        return _finding(check, "skip", "the description names no network card")
    wanted = f"expected {expected.payload_gbit_s:.1f} Gbit/s or more"
    if host.finds("iperf3") is None:
        return _finding(check, "skip", f"{wanted}; iperf3 is not installed: sudo apt install iperf3")
    if far_end is None:
        return _finding(
            check, "skip", f"{wanted}; run iperf3 --server at the far end, and give its name with --far-end"
        )
    text = command(
        ("iperf3", "--client", far_end, "--parallel", "4", "--time", str(_IPERF_SECONDS), "--json"),
        _IPERF_SECONDS + 10.0,
    )
    rate = received_gbit_s(text or "")
    if rate is None:
        return _finding(check, "skip", f"{wanted}; iperf3 --client {far_end} gave no result")
    seen = f"{rate:.2f} Gbit/s to {far_end}, {wanted}"
    if rate >= expected.payload_gbit_s:
        return _finding(check, "ok", seen)
    return _finding(
        check,
        "warn",
        seen,
        "Loading over the network, and everything beside the tunnel, takes longer than planned.",
        "# MTU at both ends, the slot's lanes, and the far end's adapter",
    )


def received_gbit_s(text: str) -> float | None:
    """Gbit/s that arrived, in the JSON of iperf3; None where there is none."""
    try:
        result = json.loads(text)
        return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (ValueError, KeyError, TypeError):
        return None


def torch_devices(command: Run, cards: int, installed: bool | None = None) -> Finding:
    """How many cards PyTorch counts. A count: that the cards exchange rightly, it does not show."""
    check = "PyTorch"
    if installed is None:
        installed = importlib.util.find_spec("torch") is not None
    if not installed:
        return _finding(check, "skip", f"expected to count {cards}; PyTorch is not installed here")
    text = command((sys.executable, "-c", _COUNT), 60.0)
    found = re.search(r"\d+", text or "")
    if found is None:
        return _finding(check, "skip", f"expected to count {cards}; PyTorch did not answer")
    seen = f"counts {found[0]}, expected {cards}; a count shows no exchange: run all_reduce_perf -c 1"
    if int(found[0]) == cards:
        return _finding(check, "ok", seen)
    return _finding(
        check,
        "warn",
        seen,
        "Training sees other cards than planned.",
        "# CUDA_VISIBLE_DEVICES, and whether this PyTorch is built for CUDA",
    )
