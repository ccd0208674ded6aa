"""Lanes of the prepared workstation: CPU 6 with its sibling 14 for the loop, and others for lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sigd.daemon.doctor.examination import examine_host
from sigd.daemon.doctor.finding import Finding
from sigd.daemon.doctor.host import Host
from sigd.daemon.doctor.lanes import LANE_CHECKS, examine_lanes, with_lanes

MakeHost = Callable[..., Host]

CPUS = "sys/devices/system/cpu"
PREPARED = {
    f"{CPUS}/isolated": "6-7,14-15",
    f"{CPUS}/nohz_full": "6-7,14-15",
    f"{CPUS}/cpu7/topology/thread_siblings_list": "7,15",
    f"{CPUS}/cpu7/cpufreq/scaling_governor": "performance",
    f"{CPUS}/cpu7/cpuidle/state0/disable": "0",
    f"{CPUS}/cpu7/cpuidle/state0/latency": "1",
    "proc/sys/kernel/watchdog_cpumask": "0-5",
}


@pytest.fixture(autouse=True)
def lanes_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sigd.daemon.doctor.lanes.native_lane.is_built", lambda: True)


def findings_of(host: Host, *cpus: int) -> dict[str, Finding]:
    """By check, of the last of `cpus`."""
    found = examine_lanes(host, cpus)
    assert len(found) == len(LANE_CHECKS) * len(cpus)
    return {finding.check: finding for finding in found if finding.subject == f"lane on CPU {cpus[-1]}"}


def test_a_prepared_lane_has_nothing_to_fix(make_host: MakeHost) -> None:
    found = findings_of(make_host(PREPARED), 7)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["governor"].what == '"performance" on CPU 7'
    assert found["lane"].what == "may run on CPU 7, and nothing else of the daemon does"


SICK: list[tuple[str, dict[str, str], str, str, str]] = [
    ("governor", {f"{CPUS}/cpu7/cpufreq/scaling_governor": "powersave"}, "warn", "CPU 7", "scaling_governor"),
    ("interrupts", {"proc/irq/129/effective_affinity_list": "7"}, "ok", "1 could", ""),
    ("timer tick", {f"{CPUS}/nohz_full": "6,14"}, "warn", "runs on CPU 7", "nohz_full=6-7,14-15"),
    ("CPU isolation", {f"{CPUS}/isolated": "6,14"}, "warn", "CPU 7", "isolcpus=managed_irq,domain,6-7,14-15"),
    (
        "kernel watchdog",
        {"proc/sys/kernel/watchdog_cpumask": "0-7"},
        "warn",
        "CPU 7",
        "watchdog_cpumask = 0-5,",
    ),
    (
        "lane",
        {"sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope/cpuset.cpus.effective": "0-6,14"},
        "fail",
        "may use the CPUs 0-6,14, and not 7",
        "AllowedCPUs=",
    ),
]


@pytest.mark.parametrize(
    ("check", "changes", "level", "said", "command"), SICK, ids=[sick[0] for sick in SICK]
)
def test_what_a_lane_suffers_is_told_with_the_command(
    make_host: MakeHost, check: str, changes: dict[str, str], level: str, said: str, command: str
) -> None:
    found = findings_of(make_host(PREPARED | changes), 7)[check]
    assert (found.level, bool(found.why)) == (level, level != "ok")
    assert said in found.what
    assert command in "\n".join(found.fix)


def test_a_lane_on_the_sibling_of_the_loop_is_warned_of_from_both_sides(make_host: MakeHost) -> None:
    sibling = {f"{CPUS}/cpu14/topology/thread_siblings_list": "6,14"}
    host = with_lanes(make_host(PREPARED | sibling), [14])
    lane = findings_of(host, 14)["SMT sibling"]
    assert (lane.level, lane.fix) == (
        "warn",
        ("# give the daemon another core, for example: sigd serve --lane-cpu 15",),
    )
    assert "CPU 6, which the daemon has too, shares the physical core of CPU 14" in lane.what
    (loop,) = (finding for finding in examine_host(host) if finding.check == "SMT sibling")
    assert "CPU 14, which the daemon has too" in loop.what


def test_a_lane_on_the_core_of_the_loop_is_told_so(make_host: MakeHost) -> None:
    found = findings_of(make_host(PREPARED), 6)["lane"]
    assert (found.level, found.what) == ("warn", "CPU 6 is the loop's, or another lane's, too")
    assert found.fix == ("# give the daemon another core, for example: sigd serve --lane-cpu 15",)


def test_commands_for_the_loop_leave_the_lane_s_core_alone(make_host: MakeHost) -> None:
    moved = {f"{CPUS}/isolated": "", "proc/irq/129/effective_affinity_list": "6", "proc/uptime": "10 10"}
    table = make_host().read("proc/interrupts")
    assert table is not None
    moved["proc/interrupts"] = table.replace(
        "1200345          0          0          0          0          0",
        "      0          0          0          0          0    1200345",
    )
    host = with_lanes(make_host(PREPARED | moved), [7])
    found = {finding.check: finding for finding in examine_host(host)}
    assert "echo 0-5,8-13 | sudo tee /proc/irq/$irq/smp_affinity_list" in found["interrupts"].fix[0]
    assert "isolcpus=managed_irq,domain,6-7,14-15" in found["CPU isolation"].fix[0]


def test_two_cpus_that_are_both_the_daemon_s_leave_nothing_to_move(make_host: MakeHost) -> None:
    small: dict[str, Any] = {f"{CPUS}/online": "6-7", f"{CPUS}/isolated": "", f"{CPUS}/nohz_full": None}
    found = findings_of(make_host(PREPARED | small), 7)
    assert found["CPU isolation"].fix == ("# give the machine another CPU, or leave lane_cpu out",)
    assert found["interrupts"].level == "skip"


def test_lanes_that_are_not_built_fail(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sigd.daemon.doctor.lanes.native_lane.is_built", lambda: False)
    found = findings_of(make_host(PREPARED), 7)["lane"]
    assert (found.level, found.fix[0]) == ("fail", "sudo apt install gcc")
