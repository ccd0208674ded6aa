"""Each check of the machine on a prepared tree, and on one that is spoilt in that one thing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigd.daemon.doctor import memory, processor, system
from sigd.daemon.doctor.examination import HOST_CHECKS, examine_host
from sigd.daemon.doctor.finding import Finding, worst
from sigd.daemon.doctor.host import Host, choose_cpu, format_cpus, parse_cpus
from sigd.models.errors import BackendUnavailable
from sigd.models.native.backend import kernels_are_built

MakeHost = Callable[..., Host]
Changes = Mapping[str, str | None]
Check = Callable[[Host], Finding]

CPUS = "sys/devices/system/cpu"
OURS = f"{CPUS}/cpu6"
CLOCK = "sys/devices/system/clocksource/clocksource0"
NOT_ISOLATED: Changes = {f"{CPUS}/isolated": "", f"{CPUS}/nohz_full": "(null)", "proc/cmdline": "quiet"}
LIMITED = "Max locked memory         8388608    8388608    bytes\nMax realtime priority     0     0\n"


def test_a_prepared_machine_has_nothing_to_fix(make_host: MakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    findings = examine_host(make_host())
    lacking = {finding.check for finding in findings if finding.level != "ok"}
    assert lacking == (set() if kernels_are_built() else {"native kernels"})
    assert len({finding.check for finding in findings}) == len(HOST_CHECKS)


SICK: list[tuple[Check, Changes, str, str, str]] = [
    # check, what is changed, level, a word of what is said, a word of the command
    (system.clock_source, {f"{CLOCK}/current_clocksource": "hpet"}, "fail", "hpet", "echo tsc |"),
    (
        system.clock_source,
        {f"{CLOCK}/current_clocksource": "hpet", f"{CLOCK}/available_clocksource": "hpet acpi_pm"},
        "fail",
        "hpet",
        "dmesg",
    ),
    (
        system.clock_source,
        {f"{CLOCK}/current_clocksource": "kvm-clock", f"{CLOCK}/available_clocksource": "kvm-clock tsc"},
        "warn",
        "kvm-clock",
        "echo tsc |",
    ),
    (
        processor.governor,
        {f"{OURS}/cpufreq/scaling_governor": "powersave"},
        "warn",
        "powersave",
        "echo performance",
    ),
    (
        processor.sleep_states,
        {f"{OURS}/power/pm_qos_resume_latency_us": "0"},
        "warn",
        "C6, 127 us",
        "cpu6/power/pm_qos",
    ),
    (
        processor.sleep_states,
        {f"{OURS}/power/pm_qos_resume_latency_us": "200"},
        "warn",
        "C6, 127 us",
        "max_cstate=1",
    ),
    (
        processor.isolation,
        {f"{CPUS}/isolated": "7,15"},
        "warn",
        "CPU 6 is not isolated",
        "domain,6,14 nohz_full=6,14",
    ),
    (processor.tick, {f"{CPUS}/nohz_full": "(null)"}, "warn", "nohz_full not set", "nohz_full=6,14"),
    (processor.tick, NOT_ISOLATED, "warn", "nohz_full and rcu_nocbs", "rcu_nocbs=6,14"),
    (
        processor.interrupts,
        {"proc/irq/129/effective_affinity_list": "1,6"},
        "ok",
        "2 could, and have less than once a minute since boot",
        "",
    ),
    (
        processor.sibling,
        {f"{CPUS}/isolated": "6"},
        "warn",
        "CPU 14 shares",
        "echo 0 | sudo tee /sys/devices/system/cpu/cpu14/online",
    ),
    (processor.timers, {f"{CPUS}/nohz_full": "(null)"}, "warn", "migrate", "kernel.timer_migration = 0"),
    (
        processor.watchdog,
        {"proc/sys/kernel/watchdog_cpumask": "0-15"},
        "warn",
        "CPU 6",
        "watchdog_cpumask = 0-5,7-13,15",
    ),
    (
        processor.quota,
        {
            "proc/self/cgroup": "0::/system.slice/sigd.service",
            "sys/fs/cgroup/system.slice/sigd.service/cpu.max": "50000 100000",
        },
        "fail",
        "50,000 us of CPU time in every 100,000 us",
        "systemctl set-property sigd.service CPUQuota=",
    ),
    (
        processor.quota,
        {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"},
        "fail",
        "group /",
        "docker update --cpu-quota -1",
    ),
    (
        memory.huge_pages,
        {"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never"},
        "warn",
        '"always"',
        "echo madvise | sudo tee",
    ),
    (memory.locked_memory, {"proc/self/limits": LIMITED}, "warn", "8 MiB", "memlock unlimited"),
    (
        memory.swap,
        {"proc/swaps": "Filename Type Size Used Priority\n/swap.img file 8388604 2048 -2\n"},
        "warn",
        "2 MiB on /swap.img, swappiness 60",
        "vm.swappiness = 1",
    ),
    (
        memory.swap,
        {
            "proc/swaps": "Filename Type Size Used Priority\n/swap.img file 8388604 2048 -2\n",
            "proc/sys/vm/swappiness": "1",
        },
        "warn",
        "2 MiB on /swap.img, swappiness 1",
        "swapoff",
    ),
    (
        memory.numa,
        {"sys/devices/system/node/node1/cpulist": "8-15", "proc/sys/kernel/numa_balancing": "1"},
        "warn",
        "CPU 6 is on node 0 of 2",
        "kernel.numa_balancing = 0",
    ),
    (system.realtime, {**NOT_ISOLATED, "proc/self/limits": LIMITED}, "warn", "rtprio 0", "rtprio 50"),
    (
        system.realtime,
        {**NOT_ISOLATED, "proc/sys/kernel/sched_rt_runtime_us": "-1"},
        "warn",
        "without a limit",
        "sched_rt_runtime_us = 950000",
    ),
    (
        system.virtual_machine,
        {"proc/cpuinfo": "flags\t: fpu hypervisor avx2", "proc/stat": "cpu6 100 0 50 800 0 0 0 50 0 0"},
        "warn",
        "5.00% of CPU 6",
        "virsh vcpupin",
    ),
    (system.compiler, {"usr/bin/c++": None}, "warn", "g++", "apt install g++"),
]


@pytest.mark.parametrize(("check", "changes", "level", "said", "command"), SICK)
def test_a_spoilt_machine_is_told_so_with_the_command(
    check: Check,
    changes: Changes,
    level: str,
    said: str,
    command: str,
    make_host: MakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    finding = check(make_host(changes))
    assert finding.level == level
    assert said in finding.what
    assert command in "\n".join(finding.fix)
    assert bool(finding.why) == bool(finding.fix) == (level in ("warn", "fail"))


GOOD: list[tuple[Check, Changes, str]] = [
    (system.clock_source, {f"{CLOCK}/current_clocksource": "arch_sys_counter"}, "arch_sys_counter"),
    # The kernel writes "n/a" for "no latency at all".
    (processor.sleep_states, {f"{OURS}/power/pm_qos_resume_latency_us": "n/a"}, "POLL, 0 us"),
    (
        processor.sleep_states,
        {f"{OURS}/power/pm_qos_resume_latency_us": "0", f"{OURS}/cpuidle/state2/disable": "1"},
        "C1, 2 us",
    ),
    (
        processor.isolation,
        {f"{CPUS}/isolated": "", "sys/fs/cgroup/cpuset.cpus.isolated": "6-7"},
        "isolated (with 6-7)",
    ),
    (processor.sibling, {f"{OURS}/topology/thread_siblings_list": "6"}, "for itself"),
    (processor.sibling, {f"{CPUS}/online": "0-13", f"{CPUS}/isolated": "6"}, "for itself"),
    (processor.timers, {f"{CPUS}/nohz_full": "(null)", "proc/sys/kernel/timer_migration": "0"}, "stay"),
    (
        processor.watchdog,
        {"proc/sys/kernel/watchdog": "0", "proc/sys/kernel/watchdog_cpumask": "0-15"},
        "leaves CPU 6",
    ),
    (memory.huge_pages, {"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]"}, '"never"'),
    (
        memory.locked_memory,
        {"proc/self/limits": LIMITED, "proc/self/status": "CapEff:\t0000000000004000\n"},
        "CAP_IPC_LOCK",
    ),
    (
        memory.swap,
        {
            "proc/swaps": "Filename Type Size Used Priority\n/swap.img file 8388604 0 -2\n",
            "proc/sys/vm/swappiness": "1",
        },
        "unused",
    ),
    (memory.numa, {"sys/devices/system/node/node1/cpulist": "8-15"}, "balancing is off"),
    (system.realtime, {"proc/self/limits": LIMITED}, "not needed: CPU 6 is isolated"),
    (system.realtime, NOT_ISOLATED, "limited to 950,000 us in every 1,000,000 us: right for idle backoff"),
    (system.container, {".dockerenv": ""}, "docker"),
    (system.container, {"run/.containerenv": ""}, "podman"),
    (system.container, {"run/systemd/container": "lxc", ".dockerenv": ""}, "lxc"),
    (system.container, {}, "none"),
    (
        processor.sleep_states,
        {f"{OURS}/cpuidle/state2/latency": "10"},
        "C6, 10 us to wake, by a limit of 10 us",
    ),
]


@pytest.mark.parametrize(("check", "changes", "said"), GOOD)
def test_what_is_good_in_another_way_is_good(
    check: Check, changes: Changes, said: str, make_host: MakeHost
) -> None:
    finding = check(make_host(changes))
    assert finding.level == "ok"
    assert said in finding.what


ABSENT: list[tuple[Check, Changes]] = [
    (system.kernel, {"proc/sys/kernel/osrelease": None}),
    (system.clock_source, {f"{CLOCK}/current_clocksource": None}),
    (processor.governor, {f"{OURS}/cpufreq/scaling_governor": None}),
    (processor.sleep_states, {f"{OURS}/cpuidle/state{state}/latency": None for state in range(3)}),
    (processor.tick, {f"{CPUS}/nohz_full": None}),
    (processor.interrupts, {"proc/interrupts": None}),
    (processor.timers, {"proc/sys/kernel/timer_migration": None}),
    (processor.watchdog, {"proc/sys/kernel/watchdog": None}),
    (processor.quota, {"proc/self/cgroup": "1:name=systemd:/"}),
    (memory.huge_pages, {"sys/kernel/mm/transparent_hugepage/enabled": None}),
    (memory.locked_memory, {"proc/self/limits": None}),
    (memory.swap, {"proc/swaps": None}),
    (system.realtime, {**NOT_ISOLATED, "proc/self/limits": None}),
]


@pytest.mark.parametrize(("check", "changes"), ABSENT)
def test_what_cannot_be_read_is_skipped_with_the_reason(
    check: Check, changes: Changes, make_host: MakeHost
) -> None:
    finding = check(make_host(changes))
    assert finding.level == "skip"
    assert finding.what


def test_every_check_stands_an_empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    findings = examine_host(Host(0, tmp_path, search_path=str(tmp_path)))
    assert worst(findings) == "warn"


def test_interrupts_are_named_busiest_first_and_moved_off_the_physical_core(make_host: MakeHost) -> None:
    lines = [
        "      CPU0  CPU6",
        " 129:   10   500  IR-PCI-MSIX-0000:05:00.0    0-edge      eno1",
        " 131:    0  9000  IR-PCI-MSI-0000:01:00.0    0-edge      nvidia",
        " LOC:    5     5  Local timer interrupts",
    ]
    table = "\n".join(lines) + "\n"
    changes: Changes = {
        "proc/interrupts": table,
        "proc/irq/129/effective_affinity_list": None,
        "proc/irq/129/smp_affinity_list": "0-15",
        "proc/irq/131/effective_affinity_list": "6",
    }
    finding = processor.interrupts(make_host(changes))
    assert finding.level == "warn"
    assert finding.what == "devices interrupt CPU 6: 131 nvidia (9,000 times), 129 eno1 (500 times)"
    assert (
        finding.fix[0]
        == "for irq in 131 129; do echo 0-5,7-13,15 | sudo tee /proc/irq/$irq/smp_affinity_list; done"
    )
    assert "IRQBALANCE_BANNED_CPULIST=6,14" in finding.fix[1]
    without_balancer = processor.interrupts(make_host({**changes, "proc/412/comm": "bash"}))
    assert "IRQBALANCE" not in "".join(without_balancer.fix)


def test_cpu_0_is_not_offered_for_isolation(make_host: MakeHost) -> None:
    host = make_host({**NOT_ISOLATED, f"{CPUS}/cpu0/topology/thread_siblings_list": "0,8"}, cpu=0)
    for finding in (processor.isolation(host), processor.tick(host)):
        assert finding.level == "warn"
        assert "sigd serve --cpu 1" in "".join(finding.fix)


def test_the_compiler_that_the_environment_names_is_the_one_looked_for(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "clang++-99")
    finding = system.compiler(make_host())
    assert finding.level == "warn"
    assert "clang++-99" in finding.what


def test_native_kernels_that_are_absent_are_named_with_the_cure(
    make_host: MakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise BackendUnavailable("not built")

    monkeypatch.setattr("sigd.models.native.backend.kernels", absent)
    finding = system.native_kernels(make_host())
    assert (finding.level, finding.what) == (
        "warn",
        "not built: sigd was installed where there is no C compiler",
    )
    assert "apt install gcc" in finding.fix[0]
    assert "--no-binary sigd" in finding.fix[1]


def test_native_kernels_that_are_built_are_named_with_their_instruction_set(make_host: MakeHost) -> None:
    if not kernels_are_built():
        pytest.skip("the native kernels are not built: python hatch_build.py")
    assert system.native_kernels(make_host()).what.endswith(("avx512", "avx2", "plain"))


def test_the_chosen_cpu_is_an_isolated_one_and_otherwise_the_last(make_host: MakeHost) -> None:
    assert choose_cpu(make_host()) == 6
    assert choose_cpu(make_host({f"{CPUS}/isolated": "", f"{CPUS}/online": "0-3,6-7"})) == 7
    # Isolated and switched off is of no use.
    assert choose_cpu(make_host({f"{CPUS}/isolated": "14", f"{CPUS}/online": "0-7"})) == 7


def test_the_kernel_log_is_read_record_by_record(make_host: MakeHost) -> None:
    log = (
        "6,339,5140900,-;NVRM: loaded\n SUBSYSTEM=pci\n3,340,91,-;NVRM: Xid (PCI:0000:01:00): 79, gone;"
        " lost\n"
    )
    assert make_host({"dev/kmsg": log}).kernel_log() == [
        "NVRM: loaded",
        "NVRM: Xid (PCI:0000:01:00): 79, gone; lost",
    ]
    assert make_host().kernel_log() is None


@given(st.sets(st.integers(0, 300)))
def test_lists_of_cpus_are_read_as_they_are_written(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_every_command_is_good_shell(make_host: MakeHost) -> None:
    spoilt: dict[str, str | None] = {}
    for _, changes, level, _, _ in SICK:
        if level != "ok":
            spoilt |= changes
    commands = [line for check in HOST_CHECKS for line in check(make_host(spoilt)).fix]
    commands += [line for check, changes, *_ in SICK for line in check(make_host(changes)).fix]
    assert len(commands) > 20
    for command in commands:
        parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, f"{command}: {parsed.stderr}"


def test_boot_parameters_are_appended_to_what_is_there(make_host: MakeHost, tmp_path: Path) -> None:
    """The line is read by a shell as update-grub reads it: in the middle of its own variables."""
    command = (
        processor.isolation(make_host(NOT_ISOLATED))
        .fix[0]
        .replace("sudo tee /etc/default/grub.d", f"tee {tmp_path}")
    )
    written = subprocess.run(
        [
            "bash",
            "-c",
            (
                f'{command} > /dev/null; GRUB_CMDLINE_LINUX="quiet"; . {tmp_path}/60-sigd-isolation.cfg; echo'
                ' "$GRUB_CMDLINE_LINUX"'
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert written.stdout.split() == [
        "quiet",
        "isolcpus=managed_irq,domain,6,14",
        "nohz_full=6,14",
        "rcu_nocbs=6,14",
        "irqaffinity=0-5,7-13,15",
    ]


def test_single_interrupts_since_boot_are_no_finding(make_host: MakeHost) -> None:
    table = "      CPU0  CPU6\n 129:   10   FIRED  IR-PCI-MSIX-0000:05:00.0    0-edge      eno1\n"
    for fired, level in ((1, "ok"), (59, "ok"), (61, "warn")):
        changes: Changes = {
            "proc/interrupts": table.replace("FIRED", f"{fired:5}"),
            "proc/irq/129/effective_affinity_list": "6",
            "proc/uptime": "3600.00 7000.00",
        }
        assert processor.interrupts(make_host(changes)).level == level


def test_machine_of_one_cpu_gets_no_command_with_nothing_in_it(make_host: MakeHost) -> None:
    """Every fix that moves work to other CPUs would name none."""
    changes: Changes = {
        f"{CPUS}/online": "6",
        f"{CPUS}/isolated": "",
        f"{CPUS}/nohz_full": "(null)",
        f"{OURS}/topology/thread_siblings_list": "6",
        "proc/cmdline": "",
        "proc/interrupts": "      CPU6\n 129:   500  IR-PCI-MSIX-0000:05:00.0    0-edge      eno1\n",
        "proc/irq/129/effective_affinity_list": "6",
        "proc/sys/kernel/watchdog_cpumask": "6",
    }
    host = make_host(changes)
    for finding in examine_host(host):
        for command in finding.fix:
            assert "echo  |" not in command, finding
            assert "= '" not in command, finding
            assert "--cpu" not in command, finding
            assert "isolcpus" not in command, finding
    assert processor.isolation(host).fix == ("# give the machine a second CPU, or serve with --idle block",)
    for check in (processor.interrupts, processor.watchdog, processor.timers, processor.tick):
        assert check(host).level == "skip"
