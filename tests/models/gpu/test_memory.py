"""Who holds a GPU, told by a fake of the part of NVML that is asked."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from sigd.models.gpu.memory import Memory, MemoryReader, who_holds

MIB = 2**20
ASK = "nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv"


class FakeNvml:
    """One card with processes on it: pid -> bytes, None where NVML does not tell."""

    class NVMLError(Exception):
        pass

    def __init__(self, processes: dict[int, int | None], failing: str = "") -> None:
        self.processes = processes
        self.failing = failing
        self.asked: list[str] = []
        self.running = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.failing == "init":
            raise self.NVMLError("Driver Not Loaded")
        self.running += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.running -= 1

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> str:  # noqa: N802
        if self.failing == "card":
            raise self.NVMLError("Not Found")
        self.asked.append(bus_id)
        return "card"

    def nvmlDeviceGetMemoryInfo(self, card: str) -> Any:  # noqa: N802
        return SimpleNamespace(free=812 * MIB, total=24576 * MIB)

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: str) -> list[Any]:  # noqa: N802
        return []


def use(monkeypatch: pytest.MonkeyPatch, nvml: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_the_largest_holder_comes_first_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml({2**22 + 1: 1000 * MIB, os.getpid(): 22_000 * MIB})
    use(monkeypatch, nvml)
    said = who_holds("0000:01:00.0")
    assert nvml.asked == ["0000:01:00.0"]
    assert "812 of 24,576 MiB are free" in said
    assert (
        f"(pid {os.getpid()}) holds 22,000 MiB, a process of another namespace (pid 4194305) holds 1,000 MiB"
        in said
    )
    assert "python" in said
    assert "--gpu-memory-utilization" in said
    assert nvml.running == 0


def test_an_amount_that_nvml_does_not_tell_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml({os.getpid(): None}))
    assert "holds an amount that NVML does not tell" in who_holds("0000:01:00.0")


def test_processes_of_another_container_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeNvml({}))
    said = who_holds("0000:01:00.0")
    assert "NVML sees no process on it" in said
    assert ASK in said


def test_without_nvml_it_says_how_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None)
    assert who_holds("0000:01:00.0") == f"to see who holds it: {ASK}"


@pytest.mark.parametrize(("failing", "words"), [("init", "Driver Not Loaded"), ("card", "Not Found")])
def test_an_error_of_nvml_is_passed_on(monkeypatch: pytest.MonkeyPatch, failing: str, words: str) -> None:
    nvml = FakeNvml({}, failing)
    use(monkeypatch, nvml)
    assert who_holds("0000:01:00.0") == f"NVML does not say who holds it ({words}): {ASK}"
    assert nvml.running == 0


def test_reading_a_card_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml({os.getpid(): 500 * MIB, 2**22 + 1: 1})
    use(monkeypatch, nvml)
    reader = MemoryReader()
    assert [reader.read("0000:01:00.0") for _ in range(2)] == [Memory(24576 * MIB, 812 * MIB, 500 * MIB)] * 2
    assert nvml.asked == ["0000:01:00.0"] * 2
    assert nvml.running == 1
    nvml.processes.clear()
    assert reader.read("0000:01:00.0").own is None
