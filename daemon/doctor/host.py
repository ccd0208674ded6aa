"""The host as its files tell it: /proc, /sys and /dev under a root that tests replace by a recorded tree."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CPUS = "sys/devices/system/cpu"
_KMSG_RECORD_BYTES = 8192
_CAPABILITY_BITS = {"CAP_IPC_LOCK": 14, "CAP_SYS_NICE": 23}


@dataclass(frozen=True)
class Host:
    """Reads one machine.

    Attributes:
        cpu: the CPU that the daemon is to run on, which the checks are about.
        root: where /proc, /sys and /dev are found.
        search_path: where programs are looked for, in the form of $PATH; None takes $PATH itself.
        others_of_daemon: the CPUs of the daemon's other threads: of its lanes, or of its loop.
        option: of `sigd serve`, which names `cpu`.
    """

    cpu: int
    root: Path = Path("/")
    search_path: str | None = None
    others_of_daemon: frozenset[int] = frozenset()
    option: str = "--cpu"

    def read(self, path: str) -> str | None:
        """The text of a file without the white space around it; None where it is not there or may not be
        read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The whole number in a file; None where there is none."""
        text = self.read(path)
        try:
            return None if text is None else int(text)
        except ValueError:
            return None

    def names(self, path: str) -> list[str]:
        """What a directory holds, in order; empty where it is not there or may not be read."""
        try:
            return sorted(os.listdir(self.root / path))
        except OSError:
            return []

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def of_cpu(self, path: str) -> str:
        """The path of a file of the chosen CPU, for example "topology/core_id"."""
        return f"{CPUS}/cpu{self.cpu}/{path}"

    def control_group(self) -> str | None:
        """The path of this process's control group below its root, without the first slash; None where there
        are none of version 2."""
        found = re.search(r"^0::/(.*)$", self.read("proc/self/cgroup") or "", re.MULTILINE)
        return None if found is None else found[1]

    def online(self) -> frozenset[int]:
        """The CPUs that are switched on."""
        return parse_cpus(self.read(f"{CPUS}/online") or "")

    def isolated(self) -> frozenset[int]:
        """The CPUs that the scheduler leaves alone: from boot (isolcpus) or as a cpuset partition."""
        boot = parse_cpus(self.read(f"{CPUS}/isolated") or "")
        return boot | parse_cpus(self.read("sys/fs/cgroup/cpuset.cpus.isolated") or "")

    def siblings(self) -> frozenset[int]:
        """The CPUs on the same physical core as the chosen one, itself included."""
        return self._siblings_of(self.cpu)

    def _siblings_of(self, cpu: int) -> frozenset[int]:
        return parse_cpus(self.read(f"{CPUS}/cpu{cpu}/topology/thread_siblings_list") or "") | {cpu}

    def kept(self) -> frozenset[int]:
        """The CPUs to keep free of all but the daemon: the physical cores of its threads."""
        return self.siblings().union(*map(self._siblings_of, self.others_of_daemon))

    def others(self) -> frozenset[int]:
        """The CPUs that interrupts and housekeeping may have: online, and off the daemon's physical cores."""
        online = self.online()
        return (
            (online - self.kept() - self.isolated())
            or (online - {self.cpu} - self.others_of_daemon)
            or (online - {self.cpu})
        )

    def boot_parameter(self, name: str) -> str | None:
        """The value of a kernel parameter ("" where it has none); None where the kernel was booted without
        it."""
        for word in (self.read("proc/cmdline") or "").split():
            key, _, value = word.partition("=")
            if key == name:
                return value
        return None

    def limit(self, name: str) -> int | None:
        """A soft limit of this process, as in /proc/self/limits; -1 for unlimited, None where it is not
        listed."""
        for line in (self.read("proc/self/limits") or "").splitlines():
            if line.startswith(name):
                soft = line.removeprefix(name).split()[0]
                return -1 if soft == "unlimited" else int(soft)
        return None

    def capable(self, capability: str) -> bool:
        """Whether this process has a capability, so that the limit of the same kind does not bind it."""
        found = re.search(r"^CapEff:\s*([0-9a-f]+)$", self.read("proc/self/status") or "", re.MULTILINE)
        return found is not None and bool(int(found[1], 16) >> _CAPABILITY_BITS[capability] & 1)

    def runs(self, program: str) -> bool:
        """Whether a process of that name runs."""
        pids = (name for name in self.names("proc") if name.isdecimal())
        return any(self.read(f"proc/{pid}/comm") == program for pid in pids)

    def finds(self, program: str) -> str | None:
        """The path of an executable on the search path."""
        return shutil.which(program, path=self.search_path)

    def kernel_log(self) -> list[str] | None:
        """The kernel's messages since boot, as far as its buffer holds them; None where they may not be
        read."""
        try:
            descriptor = os.open(self.root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        records = []
        try:
            while True:
                try:
                    record = os.read(descriptor, _KMSG_RECORD_BYTES)
                except OSError as error:
                    # A record was overwritten before we came to it: the next read goes on behind the gap.
                    if error.errno == errno.EPIPE:
                        continue
                    if error.errno == errno.EAGAIN:
                        break
                    return None
                if not record:
                    break
                records.append(record)
        finally:
            os.close(descriptor)
        lines = b"".join(records).decode(errors="replace").splitlines()
        # "priority,sequence,time,flags;message", then lines of keys that begin with a space.
        return [line.partition(";")[2] for line in lines if line and not line.startswith(" ")]


def parse_cpus(text: str) -> frozenset[int]:
    """The CPUs of a list in the kernel's form.

    >>> sorted(parse_cpus("0-2,5"))
    [0, 1, 2, 5]
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def format_cpus(cpus: Iterable[int]) -> str:
    """A list of CPUs in the kernel's form.

    >>> format_cpus({0, 1, 2, 5})
    '0-2,5'
    """
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def choose_cpu(host: Host, taken: Iterable[int] = ()) -> int:
    """The CPU to look at where none was named: the first isolated one, else the highest, since interrupts
    and housekeeping gather on the lowest. One of those that are taken only where there is no other."""
    online = (host.online() - set(taken)) or host.online()
    isolated = host.isolated() & online
    if isolated:
        return min(isolated)
    return max(online, default=host.cpu)
