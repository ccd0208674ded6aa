"""A workstation as its files tell it, and two RTX 3090 with vLLM on both as NVML tells it.

The tree is that of a prepared Ubuntu 24.04 machine: 8 cores with two threads each, CPU 6 (and its sibling 14)
kept for the daemon. The cards have the limits and clocks that RTX 3090 report. A test changes what it is
about.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sigd.daemon.doctor.host import Host

CPU = 6
_CPUS = "sys/devices/system/cpu"
_OURS = f"{_CPUS}/cpu{CPU}"
_INTERRUPTS = """\
            CPU0       CPU1       CPU2       CPU3       CPU4       CPU5       CPU6       CPU7
   0:         38          0          0          0          0          0          0          0  IO-APIC    2-edge      timer
 129:          0    1200345          0          0          0          0          0          0  IR-PCI-MSIX-0000:05:00.0    0-edge      eno1
 130:          0          0          0          0          0          0          0          0  IR-PCI-MSIX-0000:04:00.0    7-edge      nvme0q7
 131:      84211          0          0          0          0          0          0          0  IR-PCI-MSI-0000:01:00.0    0-edge      nvidia
 NMI:          0          0          0          0          0          0          0          0  Non-maskable interrupts
 LOC:    9218312    8120334    7120331    7020311    7120931    7110331        903    7120331  Local timer interrupts
"""
_LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max locked memory         unlimited            unlimited            bytes
Max realtime priority     50                   50
"""
PREPARED: Mapping[str, str] = {
    "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda2 isolcpus=managed_irq,domain,6,14 nohz_full=6,14"
    " rcu_nocbs=6,14",
    "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu tsc constant_tsc nonstop_tsc avx2\n",
    "proc/interrupts": _INTERRUPTS,
    "proc/irq/0/effective_affinity_list": "0",
    "proc/irq/129/effective_affinity_list": "1",
    "proc/irq/130/effective_affinity_list": "6",
    "proc/irq/131/effective_affinity_list": "0",
    "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-2.scope\n",
    "proc/self/limits": _LIMITS,
    "proc/self/status": "Name:\tsigd\nCapEff:\t0000000000000000\n",
    "proc/stat": "cpu  1 0 1 9 0 0 0 0 0 0\ncpu6 100 0 50 850 0 0 0 0 0 0\n",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
    "proc/sys/kernel/numa_balancing": "0",
    "proc/sys/kernel/osrelease": "6.8.0-71-generic",
    "proc/sys/kernel/sched_rt_period_us": "1000000",
    "proc/sys/kernel/sched_rt_runtime_us": "950000",
    "proc/sys/kernel/timer_migration": "1",
    "proc/sys/kernel/watchdog": "1",
    "proc/sys/kernel/watchdog_cpumask": "0-5,7-13,15",
    "proc/sys/vm/swappiness": "60",
    "proc/version": "Linux version 6.8.0-71-generic (buildd@x) #71-Ubuntu SMP PREEMPT_DYNAMIC",
    "proc/412/comm": "irqbalance",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030000",
    "sys/bus/pci/devices/0000:01:00.0/local_cpulist": "0-15",
    "sys/bus/pci/devices/0000:01:00.0/numa_node": "-1",
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de",
    "sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm",
    "sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc",
    f"{_CPUS}/isolated": "6,14",
    f"{_CPUS}/nohz_full": "6,14",
    f"{_CPUS}/online": "0-15",
    f"{_OURS}/cpufreq/scaling_governor": "performance",
    f"{_OURS}/cpuidle/state0/disable": "0",
    f"{_OURS}/cpuidle/state0/latency": "0",
    f"{_OURS}/cpuidle/state0/name": "POLL",
    f"{_OURS}/cpuidle/state1/disable": "0",
    f"{_OURS}/cpuidle/state1/latency": "2",
    f"{_OURS}/cpuidle/state1/name": "C1",
    f"{_OURS}/cpuidle/state2/disable": "0",
    f"{_OURS}/cpuidle/state2/latency": "127",
    f"{_OURS}/cpuidle/state2/name": "C6",
    f"{_OURS}/node0/cpulist": "0-15",
    f"{_OURS}/power/pm_qos_resume_latency_us": "10",
    f"{_OURS}/topology/thread_siblings_list": "6,14",
    "sys/devices/system/node/node0/cpulist": "0-15",
    "sys/fs/cgroup/user.slice/user-1000.slice/cpu.max": "max 100000",
    "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
    "sys/kernel/mm/transparent_hugepage/defrag": "always defer defer+madvise [madvise] never",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "usr/bin/c++": "#!/bin/sh\n",
}

MakeHost = Callable[..., Host]


@pytest.fixture
def make_host(tmp_path: Path) -> MakeHost:
    """The prepared machine with some files changed: `make_host({path: text or None for absent}, cpu=6)`."""
    numbers = itertools.count()

    def make(changes: Mapping[str, str | None] | None = None, cpu: int = CPU) -> Host:
        root = tmp_path / f"root{next(numbers)}"
        for path, text in {**PREPARED, **(changes or {})}.items():
            if text is not None:
                file = root / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
                file.chmod(0o755)
        return Host(cpu, root, search_path=str(root / "usr/bin"))

    return make


class NvmlError(Exception):
    """As pynvml's: the code is in `value`."""

    def __init__(self, value: int, text: str) -> None:
        super().__init__(text)
        self.value = value


NOT_SUPPORTED = NvmlError(3, "Not Supported")
_CONSTANTS = {
    "NVML_CLOCK_SM": 1,
    "NVML_COMPUTEMODE_PROHIBITED": 2,
    "NVML_COMPUTEMODE_EXCLUSIVE_PROCESS": 3,
    "NVML_ERROR_INVALID_ARGUMENT": 2,
    "NVML_ERROR_NOT_SUPPORTED": 3,
    "NVML_ERROR_NO_PERMISSION": 4,
    "NVML_ERROR_NOT_FOUND": 6,
    "NVML_ERROR_DRIVER_NOT_LOADED": 9,
    "NVML_ERROR_LIBRARY_NOT_FOUND": 12,
    "NVML_ERROR_FUNCTION_NOT_FOUND": 13,
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": 18,
    "NVML_MEMORY_ERROR_TYPE_UNCORRECTED": 1,
    "NVML_NVLINK_MAX_LINKS": 18,
    "NVML_TEMPERATURE_GPU": 0,
    "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN": 1,
    "NVML_VOLATILE_ECC": 0,
    "nvmlClocksEventReasonGpuIdle": 0x1,
    "nvmlClocksEventReasonSwPowerCap": 0x4,
    "nvmlClocksEventReasonSwThermalSlowdown": 0x20,
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": 0x80,
    "nvmlClocksThrottleReasonHwSlowdown": 0x8,
    "nvmlClocksThrottleReasonHwThermalSlowdown": 0x40,
}


def _rtx_3090(bus_id: str, vllm_pid: int) -> dict[str, Any]:
    """An RTX 3090 in the second slot pair of a desktop board (x8/x8), clocks locked, vLLM holding 80% of
    it."""
    return {
        "nvmlDeviceGetName": "NVIDIA GeForce RTX 3090",
        "nvmlDeviceGetPciInfo": SimpleNamespace(busId=bus_id),
        "nvmlDeviceGetCudaComputeCapability": (8, 6),
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24576 << 20, free=4300 << 20, used=20276 << 20),
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetComputeMode": 0,
        "nvmlDeviceGetDisplayActive": 0,
        "nvmlDeviceGetClockInfo": 1680,
        "nvmlDeviceGetMaxClockInfo": 2100,
        "nvmlDeviceGetPerformanceState": 2,
        "nvmlDeviceGetCurrentClocksEventReasons": 0,
        "nvmlDeviceGetCurrPcieLinkGeneration": 4,
        "nvmlDeviceGetMaxPcieLinkGeneration": 4,
        "nvmlDeviceGetCurrPcieLinkWidth": 8,
        "nvmlDeviceGetMaxPcieLinkWidth": 16,
        "nvmlDeviceGetNvLinkState": [1, 1, 1, 1],
        "nvmlDeviceGetPowerUsage": 214_000,
        "nvmlDeviceGetPowerManagementLimit": 350_000,
        "nvmlDeviceGetPowerManagementDefaultLimit": 350_000,
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetTemperatureThreshold": 95,
        "nvmlDeviceGetEccMode": NOT_SUPPORTED,
        "nvmlDeviceGetTotalEccErrors": NOT_SUPPORTED,
        "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=vllm_pid, usedGpuMemory=19_660 << 20)],
        "nvmlDeviceGetGraphicsRunningProcesses": [],
    }


class RecordedNvml:
    """Stands in for the module `pynvml`: answers from a record; what is not in it is an error.

    Attributes:
        system: function to answer, for those without a card.
        cards: the same for each card. A list under nvmlDeviceGetNvLinkState holds one answer for each link.
            An answer that is an exception is raised.
        opened: nvmlInit() calls that no nvmlShutdown() has closed.
        asked: every function that was looked up.
    """

    NVMLError = NvmlError

    def __init__(self) -> None:
        self.system: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": "580.95.05",
            "nvmlSystemGetCudaDriverVersion_v2": 13000,
            "nvmlSystemGetProcessName": "VLLM::EngineCore",
        }
        self.cards = [_rtx_3090("00000000:01:00.0", 2101), _rtx_3090("00000000:02:00.0", 2102)]
        self.opened = 0
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        self.asked.add(name)
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        match name, arguments:
            case "nvmlInit", ():
                _answer(self.system[name])
                self.opened += 1
                return None
            case "nvmlShutdown", ():
                self.opened -= 1
                return None
            case "nvmlDeviceGetCount", ():
                return len(self.cards)
            case "nvmlDeviceGetHandleByIndex", (index,):
                return self.cards[index]
            case "nvmlDeviceGetNvLinkState", (card, link):
                links = card[name]
                return links[link] if link < len(links) else _answer(NvmlError(2, "Invalid Argument"))
            case _ if name in self.system:
                return _answer(self.system[name])
            case _, (card, *_):
                return _answer(card[name])
        raise AssertionError(f"{name}{arguments}")


def _answer(recorded: Any) -> Any:
    if isinstance(recorded, Exception):
        raise recorded
    return recorded


@pytest.fixture
def library() -> Iterator[RecordedNvml]:
    """The recorded NVML of the two cards; its opener has to close it."""
    recorded = RecordedNvml()
    yield recorded
    assert recorded.opened == 0


@pytest.fixture
def nvml_error() -> Callable[[int, str], Exception]:
    """Makes an error as NVML raises it."""
    return NvmlError
