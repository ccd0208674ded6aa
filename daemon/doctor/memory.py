"""Checks of memory: whether a page can go missing, move or be far away when the daemon touches it."""

from __future__ import annotations

import re

from sigd.daemon.doctor.finding import Finding, sysctl
from sigd.daemon.doctor.host import Host

SWAPPINESS_MAX = 10
_THP = "sys/kernel/mm/transparent_hugepage"


def huge_pages(host: Host) -> Finding:
    """Transparent huge pages: the kernel assembles 2 MiB pages behind the process's back."""
    check = "transparent huge pages"
    enabled = _chosen(host.read(f"{_THP}/enabled"))
    defrag = _chosen(host.read(f"{_THP}/defrag"))
    if enabled is None:
        return Finding(check, "skip", "this kernel has no transparent huge pages")
    if enabled != "always":
        return Finding(check, "ok", f'"{enabled}"')
    return Finding(
        check,
        "warn",
        f'"always" (defrag "{defrag or "unknown"}"), expected "madvise" or "never"',
        "The kernel compacts memory to make huge pages, in a page fault of ours or by moving our pages, and"
        " the"
        " thread waits for it: up to milliseconds.",
        (
            f"echo madvise | sudo tee /{_THP}/enabled",
            f"echo 'w /{_THP}/enabled - - - - madvise' | sudo tee /etc/tmpfiles.d/60-sigd-hugepages.conf",
        ),
    )


def _chosen(text: str | None) -> str | None:
    """The word in brackets of a setting such as "always [madvise] never"."""
    found = re.search(r"\[(.+?)]", text or "")
    return found[1] if found else None


def locked_memory(host: Host) -> Finding:
    """Whether the process may lock all its memory."""
    check = "locked memory"
    limit = host.limit("Max locked memory")
    if host.capable("CAP_IPC_LOCK"):
        return Finding(check, "ok", "unlimited (this process has CAP_IPC_LOCK)")
    if limit is None:
        return Finding(check, "skip", "/proc/self/limits may not be read here")
    if limit == -1:
        return Finding(check, "ok", "unlimited")
    return Finding(
        check,
        "warn",
        f"this session may lock {limit / 2**20:,.0f} MiB, expected unlimited",
        "What is not locked can be taken from memory, and touching it then is a page fault, from the disk at"
        " worst:"
        " milliseconds. The systemd unit has a limit of its own (LimitMEMLOCK=infinity); this one counts for"
        " a"
        " daemon started by hand.",
        (
            'echo "$USER - memlock unlimited" | sudo tee /etc/security/limits.d/60-sigd-memlock.conf',
            "# then log out and in again",
        ),
    )


def swap(host: Host) -> Finding:
    """Whether the kernel may move pages to a disk."""
    check = "swap"
    table = host.read("proc/swaps")
    if table is None:
        return Finding(check, "skip", "/proc/swaps may not be read here")
    areas = [line.split() for line in table.splitlines()[1:] if len(line.split()) >= 4]
    swappiness = host.number("proc/sys/vm/swappiness")
    if not areas:
        return Finding(check, "ok", "none")
    used_mib = sum(int(area[3]) for area in areas) / 1024
    eager = swappiness is None or swappiness > SWAPPINESS_MAX
    if not eager and not used_mib:
        return Finding(check, "ok", f"there, unused, swappiness {swappiness}")
    fix = sysctl("swap", "vm.swappiness", "1") if eager else ()
    return Finding(
        check,
        "warn",
        f"{used_mib:,.0f} MiB on {', '.join(area[0] for area in areas)}, swappiness"
        f" {'unknown' if swappiness is None else swappiness}, expected at most {SWAPPINESS_MAX}",
        "A page that went to the disk costs milliseconds when it is needed again. Locked memory is safe from"
        " it;"
        " the engine's may not be locked.",
        (*fix, "sudo swapoff --all"),
    )


def numa(host: Host) -> Finding:
    """Whether memory can be on another node than the CPU, or be moved there and back."""
    check = "NUMA"
    nodes = [name for name in host.names("sys/devices/system/node") if re.fullmatch(r"node\d+", name)]
    if len(nodes) < 2:
        return Finding(check, "ok", "one memory node")
    node = cpu_node(host)
    where = f"CPU {host.cpu} is on node {'unknown' if node is None else node} of {len(nodes)}"
    if host.number("proc/sys/kernel/numa_balancing") == 0:
        return Finding(check, "ok", f"{where}; automatic balancing is off")
    return Finding(
        check,
        "warn",
        f"{where}, and automatic balancing is on",
        "To learn who uses which page, the kernel unmaps pages again and again; each next touch is a page"
        " fault, and"
        " pages are copied between the nodes.",
        sysctl("numa", "kernel.numa_balancing", "0"),
    )


def cpu_node(host: Host) -> int | None:
    """The memory node of the chosen CPU; None where the kernel does not say."""
    for name in host.names(host.of_cpu("")):
        if re.fullmatch(r"node\d+", name):
            return int(name.removeprefix("node"))
    return None
