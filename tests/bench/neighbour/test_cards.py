"""The neighbours on a card, with a recorded driver: what they queue, and how they end without a card."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from sigd.bench.errors import MissingDependency
from sigd.bench.neighbour import cards
from sigd.bench.neighbour.cards import CardWork, bursts


class Driver:
    """Stands in for cuda.bindings.driver and nvrtc; `calls` are the names of what was asked."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )

    def __init__(self, failing: str = "") -> None:
        self.calls: list[str] = []
        self.compiled_for: list[bytes] = []
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name == self._failing:
                return (2, None)
            if name == "nvrtcCompileProgram":
                self.compiled_for += arguments[2]
            answers: dict[str, Any] = {
                "cuDeviceGetCount": 2,
                "cuDeviceGetAttribute": {"major": 8, "minor": 6}.get(str(arguments[0]) if arguments else ""),
                "nvrtcGetCUBINSize": 4,
            }
            return 0, answers.get(name, 7)

        return call


def test_decode_copies_inside_the_card() -> None:
    driver = Driver()
    work = CardWork(driver, 1)
    bursts(work.decode(), work.wait, 0.0, sleep=lambda _: None, times=2)
    # Two to know how long a piece takes, and one a burst.
    assert driver.calls.count("cuMemcpyDtoDAsync") == 4
    assert driver.calls[-1] == "cuCtxSynchronize"


def test_prefill_launches_a_kernel_of_the_cards_architecture() -> None:
    driver = Driver()
    work = CardWork(driver, 0)
    work.prefill(driver)()
    assert driver.compiled_for == [b"--gpu-architecture=sm_86"]
    assert driver.calls[-1] == "cuLaunchKernel"


def test_a_burst_has_as_many_pieces_as_fit_its_time() -> None:
    queued: list[int] = []
    clock = itertools.count(step=0.004).__next__
    slept: list[float] = []
    bursts(lambda: queued.append(1), lambda: None, 0.020, clock=clock, sleep=slept.append, times=3)
    assert len(queued) == 2 + 3 * 5
    assert slept == [cards.PAUSE_S] * 3


@pytest.mark.parametrize("failing", ["cuInit", "cuMemAlloc", "cuModuleLoadData", "nvrtcCompileProgram"])
def test_what_the_driver_refuses_is_told(failing: str) -> None:
    driver = Driver(failing)
    with pytest.raises(MissingDependency, match="driver refused: 2"):
        CardWork(driver, 0).prefill(driver)


def test_a_card_that_is_not_there_is_told() -> None:
    with pytest.raises(MissingDependency, match="--card 2: CUDA shows 2 cards"):
        CardWork(Driver(), 2)


def test_the_command_without_cuda_ends_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    result = CliRunner().invoke(cards.main, ["decode"])
    assert result.exit_code == 3
    assert "pip install cuda-bindings" in result.output
