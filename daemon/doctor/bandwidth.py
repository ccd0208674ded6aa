"""What a copy inside a card reaches, measured through cuda-bindings; the card's other work slows it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

COPY_BYTES: Final = 256 << 20
COPIES: Final = 20
WARM_UP_COPIES: Final = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """GB/s of a copy inside a card, reading and writing both counted."""

    gb_s: float


class _Refused(Exception):
    """A call of the driver failed; the text says which and how."""


def load() -> Any:
    """The module `cuda.bindings.driver`. Raises ImportError."""
    return importlib.import_module("cuda.bindings.driver")


def measure(index: int, load: Callable[[], Any] = load) -> Measured | str:
    """Copy 256 MiB inside a card twenty times.

    Args:
        index: the card's number along the PCI bus.
        load: gives the driver's module; raises ImportError where it is not installed.

    Returns:
        What was reached, or why nothing could be measured.
    """
    try:
        driver = load()
    except ImportError:
        return "the package cuda-bindings is not installed: pip install cuda-bindings"
    try:
        _ask(driver, driver.cuInit(0))
        device = _on_bus(driver, index)
        context = _ask(driver, driver.cuDevicePrimaryCtxRetain(device))
        try:
            _ask(driver, driver.cuCtxPushCurrent(context))
            try:
                return Measured(_copy_gb_s(driver))
            finally:
                driver.cuCtxPopCurrent()
        finally:
            driver.cuDevicePrimaryCtxRelease(device)
    except (_Refused, RuntimeError) as error:
        return f"the driver refused: {error}"


def _ask(driver: Any, answer: tuple[Any, ...]) -> Any:
    """The value in an answer of the driver.

    Raises:
        _Refused: it is an error.
    """
    if answer[0] != driver.CUresult.CUDA_SUCCESS:
        raise _Refused(str(answer[0]))
    return answer[1] if len(answer) == 2 else None


def _on_bus(driver: Any, index: int) -> Any:
    """CUDA may number the cards by speed; NVML numbers them along the bus."""
    count = _ask(driver, driver.cuDeviceGetCount())
    buses = []
    for number in range(count):
        device = _ask(driver, driver.cuDeviceGet(number))
        name = _ask(driver, driver.cuDeviceGetPCIBusId(32, device))
        buses.append((bytes(name).split(b"\0")[0].decode().lower(), device))
    buses.sort(key=lambda pair: pair[0])
    if index >= count:
        raise _Refused(f"CUDA shows {count} cards (CUDA_VISIBLE_DEVICES)")
    return buses[index][1]


def _copy_gb_s(driver: Any) -> float:
    source = _ask(driver, driver.cuMemAlloc(COPY_BYTES))
    try:
        target = _ask(driver, driver.cuMemAlloc(COPY_BYTES))
        try:
            return 2 * COPY_BYTES * COPIES / _copies_s(driver, source, target) / 1e9
        finally:
            driver.cuMemFree(target)
    finally:
        driver.cuMemFree(source)


def _copies_s(driver: Any, source: Any, target: Any) -> float:
    begin, end = (_ask(driver, driver.cuEventCreate(0)) for _ in range(2))
    try:
        for _ in range(WARM_UP_COPIES):
            _ask(driver, driver.cuMemcpyDtoDAsync(target, source, COPY_BYTES, 0))
        _ask(driver, driver.cuEventRecord(begin, 0))
        for _ in range(COPIES):
            _ask(driver, driver.cuMemcpyDtoDAsync(target, source, COPY_BYTES, 0))
        _ask(driver, driver.cuEventRecord(end, 0))
        _ask(driver, driver.cuEventSynchronize(end))
        milliseconds = float(_ask(driver, driver.cuEventElapsedTime(begin, end)))
    finally:
        driver.cuEventDestroy(begin)
        driver.cuEventDestroy(end)
    if milliseconds <= 0:
        raise _Refused("its clock counted no time")
    return milliseconds / 1e3
