"""What a measurement ran on. Facts that cannot be read are "unknown", never guessed."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

UNKNOWN = "unknown"
_PACKAGES = ("sigd", "onnxruntime", "numpy", "uvloop")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and the software.

    Attributes:
        governors: CPU frequency governors of the cores in use, by core.
        isolated_cpus: the kernel's list, "" for none.
        load_average: runnable tasks over the last minute, before the run: others were at work where it is not
            small.
        virtual: under a hypervisor, where cores can be taken away unseen.
        clock_cost_ns: median cost of reading the clock.
    """

    cpu_model: str
    cpus: int
    allowed_cpus: int
    governors: dict[str, str]
    isolated_cpus: str
    virtual: bool
    kernel: str
    clock_source: str
    clock_cost_ns: float
    load_average: float
    python: str
    packages: dict[str, str]
    compiler: str


def read(cpus: Sequence[int | None], clock_cost_ns: float, compiler: str | None) -> Environment:
    """Read the facts, for the cores that the run uses."""
    info = _cpu_info()
    return Environment(
        cpu_model=info.get("model name", info.get("CPU part", UNKNOWN)),
        cpus=os.cpu_count() or 0,
        allowed_cpus=len(os.sched_getaffinity(0)),
        governors={str(cpu): _governor(cpu) for cpu in cpus if cpu is not None},
        isolated_cpus=_line("/sys/devices/system/cpu/isolated", ""),
        virtual="hypervisor" in info.get("flags", "").split(),
        kernel=platform.release(),
        clock_source=_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", UNKNOWN),
        clock_cost_ns=clock_cost_ns,
        load_average=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        compiler=compiler or "none",
    )


def _cpu_info() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _governor(cpu: int) -> str:
    return _line(
        f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "none (set by the hypervisor or BIOS)"
    )


def _line(path: str, otherwise: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return otherwise


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
