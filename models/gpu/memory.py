"""The memory of a GPU: how much there is, and who holds it, in words for the operator who has to free
some."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

_ASK = "nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv"


class Memory(NamedTuple):
    """Of one card, in bytes.

    Attributes:
        own: what this process holds; None where NVML does not tell, or does not see it (in a container).
    """

    total: int
    free: int
    own: int | None


class MemoryReader:
    """Asks NVML again and again, from one thread: each question may wait for the driver.

    Raises:
        Exception: NVML cannot be asked from here: its package or its driver is missing.
    """

    def __init__(self) -> None:
        self._pynvml: Any = importlib.import_module("pynvml")
        self._pynvml.nvmlInit()

    def read(self, pci_bus_id: str) -> Memory:
        """Of that card as of now. Raises an exception of NVML's."""
        card = self._pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        memory = self._pynvml.nvmlDeviceGetMemoryInfo(card)
        own = {
            process.pid: process.usedGpuMemory
            for process in self._pynvml.nvmlDeviceGetComputeRunningProcesses(card)
        }.get(os.getpid())
        return Memory(memory.total, memory.free, own)


def who_holds(pci_bus_id: str) -> str:
    """A sentence that names the processes on a GPU, or says how to see them where NVML cannot be asked from
    here.

    Args:
        pci_bus_id: of the card, as CUDA gives it; CUDA and NVML may number cards differently.
    """
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return f"to see who holds it: {_ASK}"
    try:
        pynvml.nvmlInit()
        try:
            return _sentence(pynvml, pci_bus_id)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"NVML does not say who holds it ({error}): {_ASK}"


def _sentence(pynvml: Any, pci_bus_id: str) -> str:
    card = pynvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
    memory = pynvml.nvmlDeviceGetMemoryInfo(card)
    processes = {
        process.pid: process.usedGpuMemory
        for process in (
            *pynvml.nvmlDeviceGetComputeRunningProcesses(card),
            *pynvml.nvmlDeviceGetGraphicsRunningProcesses(card),
        )
    }
    holders = sorted(processes.items(), key=lambda holder: -(holder[1] or 0))
    of_all = f"{memory.free / 2**20:,.0f} of {memory.total / 2**20:,.0f} MiB are free"
    if not holders:
        return f"{of_all}, and NVML sees no process on it (one in another container stays hidden): {_ASK}"
    named = ", ".join(f"{_name(pid)} (pid {pid}) holds {_size(used)}" for pid, used in holders)
    return f"{of_all}; {named}: stop it or give it a smaller share (vLLM: --gpu-memory-utilization)"


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "a process of another namespace"
    return " ".join(word for word in words[:4] if word) or "a kernel process"


def _size(used_bytes: int | None) -> str:
    return "an amount that NVML does not tell" if used_bytes is None else f"{used_bytes / 2**20:,.0f} MiB"
