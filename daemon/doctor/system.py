"""Checks of the system around the daemon: its clock, its rights, what it runs inside, what the bench
needs."""

from __future__ import annotations

import os

from sigd.daemon.doctor.finding import Finding, boot_parameters, sysctl
from sigd.daemon.doctor.host import Host

_CLOCK = "sys/devices/system/clocksource/clocksource0"
_READ_WITHOUT_SYSTEM_CALL = {
    "kvm-clock": "KVM's own clock",
    "hyperv_clocksource_tsc_page": "Hyper-V's own clock",
}
_COMPILERS = ("c++", "g++", "clang++")
INSTALL_WITH_COMPILER = (
    "sudo apt install gcc",
    "pip install --force-reinstall --no-deps --no-cache-dir --no-binary sigd sigd",
)
"""Builds what is in C."""


def clock_source(host: Host) -> Finding:
    """Where the time comes from: the daemon reads the clock several times for each batch."""
    check = "clock source"
    current = host.read(f"{_CLOCK}/current_clocksource")
    available = (host.read(f"{_CLOCK}/available_clocksource") or "").split()
    if current is None:
        return Finding(check, "skip", "the kernel does not say (no clocksource in /sys)")
    if current in ("tsc", "arch_sys_counter"):
        return Finding(check, "ok", current)
    fix: tuple[str, ...]
    if "tsc" in available:
        fix = (
            f"echo tsc | sudo tee /{_CLOCK}/current_clocksource",
            *boot_parameters("clock", "clocksource=tsc"),
        )
    else:
        fix = (
            "sudo dmesg | grep -i -E 'tsc|clocksource'",
            "# says why the kernel gave up the tsc; tsc=reliable on the kernel command line overrules it",
        )
    if current in _READ_WITHOUT_SYSTEM_CALL:
        return Finding(
            check,
            "warn",
            f"{current} ({_READ_WITHOUT_SYSTEM_CALL[current]}), expected tsc",
            "A reading costs more than one of the tsc, and the host may adjust it.",
            fix if "tsc" in available else (),
        )
    return Finding(
        check,
        "fail",
        f"{current}, expected tsc",
        "Every reading of the time is a system call, and of this source often a slow device access: up to"
        " several"
        " microseconds, several times for each batch.",
        fix,
    )


def realtime(host: Host) -> Finding:
    """Whether a thread may have real-time priority, which matters where the core is not isolated."""
    check = "real-time priority"
    limit = host.limit("Max realtime priority")
    allowed = host.capable("CAP_SYS_NICE") or (limit is not None and limit != 0)
    runtime_us = host.number("proc/sys/kernel/sched_rt_runtime_us")
    period_us = host.number("proc/sys/kernel/sched_rt_period_us")
    if limit is None and not allowed:
        return Finding(check, "skip", "/proc/self/limits may not be read here")
    if host.cpu in host.isolated():
        return Finding(
            check, "ok", f"{'' if allowed else 'not '}allowed, and not needed: CPU {host.cpu} is isolated"
        )
    if not allowed:
        return Finding(
            check,
            "warn",
            "this session may not use real-time priority (rtprio 0), and the CPU is not isolated",
            "At ordinary priority any task on the same core can take it for a time slice: milliseconds.",
            (
                'echo "$USER - rtprio 50" | sudo tee /etc/security/limits.d/60-sigd-rtprio.conf',
                "# then log out and in again, and start with: chrt --fifo 50 sigd serve --idle backoff",
            ),
        )
    if runtime_us is not None and period_us is not None and 0 <= runtime_us < period_us:
        stopped_ms = (period_us - runtime_us) / 1000
        return Finding(
            check,
            "ok",
            f"allowed, and limited to {runtime_us:,} us in every {period_us:,} us: right for idle backoff"
            f" or block; a daemon that spins at real-time priority would stand still for"
            f" {stopped_ms:g} ms in every {period_us / 1000:g} ms",
        )
    if runtime_us is not None and runtime_us < 0:
        return Finding(
            check,
            "warn",
            "allowed without a limit (kernel.sched_rt_runtime_us = -1)",
            "A thread that spins at real-time priority then keeps the kernel's own work off its core for"
            " good, which can hang the machine. To spin, isolate the core and stay at ordinary priority.",
            sysctl("realtime", "kernel.sched_rt_runtime_us", "950000"),
        )
    return Finding(check, "ok", "allowed")


def virtual_machine(host: Host) -> Finding:
    """Whether a hypervisor can take the core away."""
    check = "virtual machine"
    flags = next(
        (line for line in (host.read("proc/cpuinfo") or "").splitlines() if line.startswith("flags")), ""
    )
    if "hypervisor" not in flags.split():
        return Finding(check, "ok", "none")
    stolen = _stolen(host)
    taken = "" if stolen is None else f"; {stolen:.2%} of CPU {host.cpu} taken by the host since boot"
    return Finding(
        check,
        "warn",
        f"runs in a virtual machine{taken}",
        "The host can stop a virtual CPU at any time, for milliseconds, and nothing in here can prevent it.",
        ("# on the host, for each virtual CPU: sudo virsh vcpupin DOMAIN VCPU HOST_CPU",),
    )


def _stolen(host: Host) -> float | None:
    """The share of the chosen CPU's time that went to other guests: the 8th field of its line in
    /proc/stat."""
    for line in (host.read("proc/stat") or "").splitlines():
        name, *fields = line.split()
        if name == f"cpu{host.cpu}" and len(fields) >= 8:
            ticks = [int(field) for field in fields[:8]]
            return ticks[7] / max(sum(ticks), 1)
    return None


def container(host: Host) -> Finding:
    """Whether this is a container, whose host has to be fixed instead."""
    check = "container"
    kind = host.read("run/systemd/container")
    if kind is None and host.has(".dockerenv"):
        kind = "docker"
    if kind is None and host.has("run/.containerenv"):
        kind = "podman"
    if kind is None:
        return Finding(check, "ok", "none")
    return Finding(
        check,
        "ok",
        f"{kind}: run the commands below on the host; CPUs and limits come from the container's options"
        " (--cpuset-cpus, --ulimit memlock=-1)",
    )


def compiler(host: Host) -> Finding:
    """Whether `sigd bench` can build its load generator."""
    check = "C++ compiler"
    chosen = os.environ.get("CXX")
    names = (chosen,) if chosen else _COMPILERS
    for name in names:
        path = host.finds(name)
        if path:
            return Finding(check, "ok", path)
    return Finding(
        check,
        "warn",
        f"none of {', '.join(names)} found",
        "sigd bench measures with a load generator in C++, which it builds with the compiler at hand. Serving"
        " needs"
        " none.",
        ("sudo apt install g++",),
    )


def native_kernels(host: Host) -> Finding:
    """Whether this installation has the kernels in C, and for which of the processor's instruction sets."""
    from sigd.models.errors import BackendUnavailable
    from sigd.models.native.backend import kernels

    check = "native kernels"
    try:
        built = kernels()
    except BackendUnavailable:
        return Finding(
            check,
            "warn",
            "not built: sigd was installed where there is no C compiler",
            "Models that the kernels cover run on ONNX Runtime, several times slower. Nothing fails.",
            INSTALL_WITH_COMPILER,
        )
    return Finding(check, "ok", f"built; the best instruction set here is {built.instruction_sets()[0]}")


def kernel(host: Host) -> Finding:
    """Which kernel this is; a finding that is always good, for the reports that people send."""
    release = host.read("proc/sys/kernel/osrelease")
    if release is None:
        return Finding("kernel", "skip", "the kernel does not say which it is")
    version = host.read("proc/version") or ""
    model = next(
        (word for word in ("PREEMPT_RT", "PREEMPT_DYNAMIC", "PREEMPT") if word in version), "no preemption"
    )
    return Finding("kernel", "ok", f"{release}, {model}")
