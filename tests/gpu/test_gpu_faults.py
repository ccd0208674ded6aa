"""What can happen to a real card. The simulated one has faults of its own: tests/simcuda."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.gpu.faults import DEVICE_TIMEOUT_MS, LATE_NS

if TYPE_CHECKING:
    from tests.gpu.conftest import EngineOf

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _needs_a_real_one() -> None:
    if hasattr(ctypes.CDLL("libcuda.so.1"), "simcuda_nothing"):
        pytest.skip("needs a real GPU: the simulated driver runs no machine code")


def what_happens(fault: str, engine: Path) -> dict[str, Any]:
    """What a process found to which it happened; it must have ended well, without a word of PyCUDA's."""
    command = [sys.executable, "-m", "tests.gpu.faults", fault, str(engine)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "PyCUDA" not in done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_dead_context_is_told_at_once_and_ever_after(engine_of: EngineOf) -> None:
    found = what_happens("wild", engine_of())
    for said in found["said"]:
        assert said["fatal"]
        assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in said["message"]


def test_a_card_that_is_late_counts_as_hung(engine_of: EngineOf) -> None:
    found = what_happens("late", engine_of())
    for said in found["said"]:
        assert said["fatal"]
        assert f"did not finish within {DEVICE_TIMEOUT_MS} ms" in said["message"]
    assert DEVICE_TIMEOUT_MS <= found["taken_ms"] < LATE_NS / 1e6


def test_memory_that_another_tenant_holds(engine_of: EngineOf) -> None:
    found = what_happens("full", engine_of())
    assert "memory of GPU 0" in found["said"] or "MiB are free" in found["said"]
