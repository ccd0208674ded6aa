"""Checks of the chosen CPU: how fast it wakes, and who else may use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sigd.daemon.doctor.finding import Finding, boot_parameters, sysctl
from sigd.daemon.doctor.host import CPUS, Host, format_cpus, parse_cpus

EXIT_LATENCY_US_MAX = 10
"""A tenth of a budget of 100 us: waking up may not cost more."""

_RARE_HZ = 1 / 60
"""A device that interrupts less often costs no percentile anything: a disk that comes up is enough for a
few."""


def another_cpu(host: Host) -> str:
    """Advice for a CPU that does not suit."""
    others = _not_daemon_s(host)
    if not others:
        return _one_more_cpu(host)
    return f"# give the daemon another core, for example: sigd serve {host.option} {max(others)}"


def _not_daemon_s(host: Host) -> frozenset[int]:
    return host.online() - {host.cpu} - host.others_of_daemon


def _one_more_cpu(host: Host) -> str:
    """Advice where every CPU is the daemon's."""
    instead = "leave lane_cpu out" if host.others_of_daemon else "serve with --idle block"
    return f"# give the machine {'another' if host.others_of_daemon else 'a second'} CPU, or {instead}"


def _no_other_cpu(host: Host, check: str) -> Finding | None:
    """For checks whose fix moves work to other CPUs: where there are none, there is nothing to run."""
    if _not_daemon_s(host):
        return None
    if host.others_of_daemon:
        return Finding(check, "skip", "every CPU is the daemon's: nothing can be moved off this one")
    return Finding(check, "skip", f"CPU {host.cpu} is the only one: nothing can be moved off it")


def governor(host: Host) -> Finding:
    """The clock of the core follows its load, unless its governor is "performance"."""
    check = "governor"
    found = host.read(host.of_cpu("cpufreq/scaling_governor"))
    if found is None:
        return Finding(
            check,
            "skip",
            "the kernel does not set this CPU's clock (a virtual machine, or the firmware does)",
        )
    if found == "performance":
        return Finding(check, "ok", f'"performance" on CPU {host.cpu}')
    return Finding(
        check,
        "warn",
        f'"{found}" on CPU {host.cpu}, expected "performance"',
        "After a quiet moment the core is clocked down, and the next requests run slow until the clock has"
        " risen"
        " again, which takes milliseconds.",
        ("echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",),
    )


def sleep_states(host: Host) -> Finding:
    """An idle core falls into deeper and deeper sleep (C-states); each costs its exit latency at the next
    request."""
    check = "C-states"
    limit_us = _resume_limit_us(host)
    states = []
    for state in host.names(host.of_cpu("cpuidle")):
        latency_us = host.number(host.of_cpu(f"cpuidle/{state}/latency"))
        enabled = host.number(host.of_cpu(f"cpuidle/{state}/disable")) == 0
        if latency_us is not None and enabled and (limit_us is None or latency_us <= limit_us):
            states.append((latency_us, host.read(host.of_cpu(f"cpuidle/{state}/name")) or state))
    if not states:
        return Finding(
            check, "skip", "the kernel does not put this CPU to sleep by itself (no cpuidle states)"
        )
    latency_us, name = max(states)
    asked = "" if limit_us is None else f", by a limit of {limit_us} us"
    if latency_us <= EXIT_LATENCY_US_MAX:
        return Finding(
            check, "ok", f"the deepest sleep of CPU {host.cpu} is {name}, {latency_us} us to wake{asked}"
        )
    limit = host.of_cpu("power/pm_qos_resume_latency_us")
    return Finding(
        check,
        "warn",
        f"CPU {host.cpu} may sleep as deep as {name}, {latency_us} us to wake, expected at most"
        f" {EXIT_LATENCY_US_MAX} us",
        "The first request after a pause waits until the core is awake. With --idle spin the daemon's core"
        " never"
        " sleeps, but the engine's does.",
        (
            f"echo {EXIT_LATENCY_US_MAX} | sudo tee /{limit}",
            *boot_parameters("cstates", "intel_idle.max_cstate=1", "processor.max_cstate=1"),
        ),
    )


def _resume_limit_us(host: Host) -> int | None:
    """What this CPU has been told to wake within, in us; None where it was not told."""
    text = host.read(host.of_cpu("power/pm_qos_resume_latency_us"))
    if text == "n/a":  # the kernel's word for "no latency at all"; its 0 means "no limit"
        return 0
    if text is not None and text.isdecimal() and int(text) > 0:
        return int(text)
    return None


def isolation(host: Host) -> Finding:
    """Whether the scheduler keeps other tasks off the core."""
    check = "CPU isolation"
    isolated = host.isolated()
    if host.cpu in isolated:
        return Finding(check, "ok", f"CPU {host.cpu} is isolated (with {format_cpus(isolated)})")
    if not _not_daemon_s(host):
        shared = f"CPU {host.cpu} is the only one: the daemon shares it"
        if host.others_of_daemon:
            shared = f"the daemon has every CPU, and shares CPU {host.cpu}"
        return Finding(
            check,
            "warn",
            f"{shared} with its clients and the kernel",
            "Whatever runs on this machine takes the core from the daemon, for milliseconds at a time.",
            (_one_more_cpu(host),),
        )
    if host.cpu == 0:
        return Finding(
            check,
            "warn",
            "CPU 0 is not isolated, and cannot be well: the kernel does its housekeeping there",
            "Every task that is scheduled on this core takes it from the daemon, for milliseconds at a time.",
            (another_cpu(host),),
        )
    return Finding(
        check,
        "warn",
        f"CPU {host.cpu} is not isolated: any task may be scheduled on it",
        "A task that the scheduler puts on this core takes it from the daemon, for milliseconds at a time.",
        boot_parameters("isolation", *_isolating(host)),
    )


def _isolating(host: Host) -> tuple[str, ...]:
    core = format_cpus(host.kept())
    housekeeping = format_cpus(host.online() - host.kept())
    parameters = (f"isolcpus=managed_irq,domain,{core}", f"nohz_full={core}", f"rcu_nocbs={core}")
    return (*parameters, f"irqaffinity={housekeeping}") if housekeeping else parameters


def tick(host: Host) -> Finding:
    """Whether the kernel's own periodic work stays off the core: its tick (nohz_full) and RCU callbacks
    (rcu_nocbs)."""
    check = "timer tick"
    # The file says "(null)" where the kernel could and was not asked to; it is absent where the kernel
    # cannot.
    tickless = host.read(f"{CPUS}/nohz_full")
    without_tick = host.cpu in parse_cpus(tickless or "")
    callbacks = host.boot_parameter("rcu_nocbs")
    # nohz_full implies rcu_nocbs for the same CPUs.
    without_callbacks = without_tick or callbacks == "all" or host.cpu in parse_cpus(callbacks or "")
    if without_tick:
        return Finding(check, "ok", f"CPU {host.cpu} runs without a tick while it has one task (nohz_full)")
    if (only := _no_other_cpu(host, check)) is not None:
        return only
    if tickless is None:
        return Finding(
            check, "skip", "this kernel is built without NO_HZ_FULL, so the tick cannot be stopped"
        )
    missing = "nohz_full" if without_callbacks else "nohz_full and rcu_nocbs"
    return Finding(
        check,
        "warn",
        f"the kernel's tick runs on CPU {host.cpu}: {missing} not set for it",
        "The tick and the kernel's deferred work interrupt the daemon 250 to 1000 times a second, for some"
        " microseconds each time.",
        (another_cpu(host),) if host.cpu == 0 else boot_parameters("isolation", *_isolating(host)),
    )


@dataclass(frozen=True)
class _Interrupt:
    number: int
    name: str
    fired: int


def interrupts(host: Host) -> Finding:
    """Whether devices interrupt the core: lines of /proc/interrupts that may be delivered to it, and have
    been."""
    check = "interrupts"
    table = host.read("proc/interrupts")
    if table is None:
        return Finding(check, "skip", "/proc/interrupts may not be read here")
    there = [line for line in _interrupts(table, host.cpu) if host.cpu in _delivered_to(host, line.number)]
    if (only := _no_other_cpu(host, check)) is not None:
        return only
    rare = _RARE_HZ * _uptime_s(host)
    fired = sorted((line for line in there if line.fired > rare), key=lambda line: -line.fired)
    if not fired:
        quiet = f"; {len(there)} could, and have less than once a minute since boot" if there else ""
        return Finding(check, "ok", f"no device interrupts CPU {host.cpu}{quiet}")
    named = ", ".join(f"{line.number} {line.name} ({line.fired:,} times)" for line in fired[:3])
    more = f" and {len(fired) - 3} more" if len(fired) > 3 else ""
    numbers = " ".join(str(line.number) for line in fired)
    away = format_cpus(host.others())
    fix = [f"for irq in {numbers}; do echo {away} | sudo tee /proc/irq/$irq/smp_affinity_list; done"]
    if host.runs("irqbalance"):
        fix.append(
            f"echo IRQBALANCE_BANNED_CPULIST={format_cpus(host.kept())} | sudo tee -a"
            " /etc/default/irqbalance"
            " && sudo systemctl restart irqbalance"
        )
    fix.append(
        "# 'Input/output error' means the kernel manages that interrupt: only isolcpus=managed_irq moves it"
    )
    return Finding(
        check,
        "warn",
        f"devices interrupt CPU {host.cpu}: {named}{more}",
        "Each interrupt stops the daemon for microseconds, and the network or disk work that follows it for"
        " longer.",
        tuple(fix),
    )


def _uptime_s(host: Host) -> float:
    """Since boot, 0 where the kernel does not say."""
    try:
        return float((host.read("proc/uptime") or "0").split()[0])
    except (ValueError, IndexError):
        return 0.0


def _interrupts(table: str, cpu: int) -> list[_Interrupt]:
    """The numbered lines of /proc/interrupts with the count of one CPU."""
    header, *lines = table.splitlines()
    columns = header.split()
    if f"CPU{cpu}" not in columns:
        return []
    column = columns.index(f"CPU{cpu}")
    found = []
    for line in lines:
        number, _, rest = line.strip().partition(":")
        fields = rest.split()
        if number.isdecimal() and len(fields) > len(columns):
            # After the counts come the controller, the line's number and mode, then the devices.
            name = " ".join(fields[len(columns) + 2 :]) or fields[-1]
            found.append(_Interrupt(int(number), name, int(fields[column])))
    return found


def _delivered_to(host: Host, number: int) -> frozenset[int]:
    effective = host.read(f"proc/irq/{number}/effective_affinity_list")
    return parse_cpus(effective or host.read(f"proc/irq/{number}/smp_affinity_list") or "")


def sibling(host: Host) -> Finding:
    """Whether the second thread of the physical core (SMT) is left empty."""
    check = "SMT sibling"
    others = (host.siblings() - {host.cpu}) & host.online()
    named = format_cpus(others)
    if not others:
        return Finding(check, "ok", f"CPU {host.cpu} has its physical core for itself")
    if busy := others & host.others_of_daemon:
        return Finding(
            check,
            "warn",
            f"CPU {format_cpus(busy)}, which the daemon has too, shares the physical core of CPU {host.cpu}",
            "The loop and its lanes divide that core's execution units and caches: each is slower whenever"
            " the other works or spins.",
            (another_cpu(host),),
        )
    if others <= host.isolated():
        return Finding(check, "ok", f"CPU {named} shares its core and is isolated too: leave it empty")
    return Finding(
        check,
        "warn",
        f"CPU {named} shares the physical core with CPU {host.cpu} and takes any task",
        "While the sibling works, the two divide the core's execution units and caches, and inference takes"
        " longer by whatever the sibling takes.",
        tuple(f"echo 0 | sudo tee /{CPUS}/cpu{cpu}/online" for cpu in sorted(others)),
    )


def watchdog(host: Host) -> Finding:
    """Whether the kernel's lockup detector runs on the core."""
    check = "kernel watchdog"
    running = host.number("proc/sys/kernel/watchdog")
    mask = parse_cpus(host.read("proc/sys/kernel/watchdog_cpumask") or "")
    if running is None:
        return Finding(check, "skip", "this kernel has no lockup detector")
    if not running or host.cpu not in mask:
        return Finding(check, "ok", f"the lockup detector leaves CPU {host.cpu} aonly")
    if (only := _no_other_cpu(host, check)) is not None:
        return only
    return Finding(
        check,
        "warn",
        f"the lockup detector runs on CPU {host.cpu}",
        "Every few seconds its timer and a thread of the highest priority take the core from the daemon.",
        sysctl("watchdog", "kernel.watchdog_cpumask", format_cpus(host.others())),
    )


def timers(host: Host) -> Finding:
    """Whether other CPUs may hand their timers to the core because it never sleeps."""
    check = "timer migration"
    migrates = host.number("proc/sys/kernel/timer_migration")
    if migrates is None:
        return Finding(check, "skip", "this kernel has no timer migration to switch off")
    if not migrates:
        return Finding(check, "ok", "timers stay on the CPU that set them")
    if (only := _no_other_cpu(host, check)) is not None:
        return only
    if host.cpu in parse_cpus(host.read(f"{CPUS}/nohz_full") or ""):
        return Finding(check, "ok", f"timers migrate, but not to CPU {host.cpu} (nohz_full)")
    return Finding(
        check,
        "warn",
        f"timers of idle CPUs migrate to busy ones, so to CPU {host.cpu} under --idle spin",
        "A core that spins is the one that never sleeps, so other CPUs hand it their timers, and it runs them"
        " between requests.",
        sysctl("timers", "kernel.timer_migration", "0"),
    )


def quota(host: Host) -> Finding:
    """Whether a control group stops the process once it has used its share of CPU time."""
    check = "CPU quota"
    own = host.control_group()
    if own is None:
        return Finding(check, "skip", "no control groups of version 2 here")
    parts = [part for part in own.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        group = "/".join(parts[:depth])
        limit = host.read(f"sys/fs/cgroup/{group}/cpu.max")
        if limit is None or limit.startswith("max"):
            continue
        quota_us, period_us = (int(word) for word in limit.split())
        unit = next((part for part in reversed(parts[:depth]) if "." in part), None)
        fix = (
            f"sudo systemctl set-property {unit} CPUQuota="
            if unit
            else "docker update --cpu-quota -1 CONTAINER"
        )
        return Finding(
            check,
            "fail",
            f"control group /{group} may use {quota_us:,} us of CPU time in every {period_us:,} us",
            f"Once the share is used up, every thread is stopped until the period ends, for up to"
            f" {period_us / 1000:g} ms; a spinning daemon uses it up in every period.",
            (fix,),
        )
    return Finding(check, "ok", "no control group limits the CPU time")


CORE_CHECKS: Final[tuple[Callable[[Host], Finding], ...]] = (
    governor,
    sleep_states,
    isolation,
    tick,
    interrupts,
    sibling,
    timers,
    watchdog,
)
"""What can hold up a thread on the CPU: the loop's, or a lane's."""
