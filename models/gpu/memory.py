"""The memory of a GPU: how much there is, and who holds it, in words for the operator who has to free
some."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from sigd.models.gpu.nvml import Nvml, load

_ASK = "nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv"
_COMPUTING: Final = "nvmlDeviceGetComputeRunningProcesses"
_DRAWING: Final = "nvmlDeviceGetGraphicsRunningProcesses"


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
        self._nvml = Nvml(load())

    def read(self, pci_bus_id: str) -> Memory:
        """Of that card as of now. Raises an exception of NVML's."""
        card = self._nvml.call("nvmlDeviceGetHandleByPciBusId", pci_bus_id)
        memory = self._nvml.call("nvmlDeviceGetMemoryInfo", card)
        return Memory(memory.total, memory.free, _held(self._nvml, card, _COMPUTING).get(os.getpid()))


def who_holds(pci_bus_id: str) -> str:
    """A sentence that names the processes on a GPU, or says how to see them where NVML cannot be asked from
    here.

    Args:
        pci_bus_id: of the card, as CUDA gives it; CUDA and NVML may number cards differently.
    """
    try:
        library = load()
    except ImportError:
        return f"to see who holds it: {_ASK}"
    try:
        with Nvml(library) as nvml:
            return _sentence(nvml, pci_bus_id)
    except library.NVMLError as error:
        return f"NVML does not say who holds it ({error}): {_ASK}"


def _held(nvml: Nvml, card: Any, *functions: str) -> dict[int, int | None]:
    """Bytes that each process holds, by its id."""
    return {
        process.pid: process.usedGpuMemory for function in functions for process in nvml.call(function, card)
    }


def _sentence(nvml: Nvml, pci_bus_id: str) -> str:
    card = nvml.call("nvmlDeviceGetHandleByPciBusId", pci_bus_id)
    memory = nvml.call("nvmlDeviceGetMemoryInfo", card)
    processes = _held(nvml, card, _COMPUTING, _DRAWING)
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
