"""Checks of the CPUs of lanes: those of the loop's CPU that concern a lane too, and one of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from sigd.daemon.doctor import processor, system
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.host import Host, format_cpus, parse_cpus
from sigd.daemon.serving import native_lane

OPTION: Final = "--lane-cpu"


def place(host: Host) -> Finding:
    """Whether a lane can run on the CPU, and has it for itself."""
    check = "lane"
    if not native_lane.is_built():
        return Finding(
            check,
            "fail",
            "lanes are not built: sigd was installed where there is no C compiler",
            "A daemon with lane_cpu does not start.",
            system.INSTALL_WITH_COMPILER,
        )
    allowed = _cpuset(host)
    if allowed is not None and host.cpu not in allowed:
        return Finding(
            check,
            "fail",
            f"this session's control group may use the CPUs {format_cpus(allowed)}, and not {host.cpu}",
            "A daemon with lane_cpu does not start.",
            ("# in a service: AllowedCPUs= of the unit; in a container: --cpuset-cpus",),
        )
    if host.cpu in host.others_of_daemon:
        return Finding(
            check,
            "warn",
            f"CPU {host.cpu} is the loop's, or another lane's, too",
            "They take the CPU from each other, for a time slice at a time. A lane that spins is refused"
            " there.",
            (processor.another_cpu(host),),
        )
    return Finding(check, "ok", f"may run on CPU {host.cpu}, and nothing else of the daemon does")


def _cpuset(host: Host) -> frozenset[int] | None:
    """The CPUs that the session's control group may use; None where none says."""
    group = host.control_group()
    if group is None:
        return None
    text = host.read(f"sys/fs/cgroup/{group}/cpuset.cpus.effective")
    return parse_cpus(text) if text else None


LANE_CHECKS: Final[tuple[Callable[[Host], Finding], ...]] = (
    place,
    *processor.CORE_CHECKS,
    system.realtime,
)


def with_lanes(host: Host, cpus: Sequence[int]) -> Host:
    """The host of a daemon whose loop runs on `host.cpu` beside lanes on `cpus`."""
    return replace(host, others_of_daemon=frozenset(cpus) - {host.cpu})


def examine_lanes(host: Host, cpus: Sequence[int]) -> list[Finding]:
    """All checks of lanes on `cpus`, of a daemon whose loop is on `host.cpu`."""
    found = []
    for cpu in cpus:
        others = frozenset({host.cpu, *(other for other in cpus if other != cpu)})
        lane = replace(host, cpu=cpu, others_of_daemon=others, option=OPTION)
        found += [msgspec.structs.replace(check(lane), subject=f"lane on CPU {cpu}") for check in LANE_CHECKS]
    return found
