"""What sigd's GPU path takes for granted of the driver, asked of whichever is here: a card's own, or the
simulated one.

Both must give the same answers, or the simulated one proves nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from tests.gpu.copies import Copies, good

pytestmark = pytest.mark.gpu

INVALID_VALUE, NO_CONTEXT, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 1, 201, 900, 901
GLOBAL, THREAD_LOCAL = 0, 1


@pytest.fixture
def driver() -> ModuleType:
    from cuda.bindings import driver

    module: ModuleType = driver
    return module


@pytest.fixture
def pycuda(driver: ModuleType) -> Iterator[ModuleType]:
    """PyCUDA with the primary context current on this thread."""
    import pycuda.driver as pycuda

    pycuda.init()
    context = pycuda.Device(0).retain_primary_context()
    context.push()
    yield pycuda
    context.pop()
    context.detach()
    driver.cuCtxSetCurrent(0)


@pytest.fixture
def begin_capture(driver: ModuleType, pycuda: ModuleType) -> Callable[..., Any]:
    """A stream on which a capture has begun: (mode=THREAD_LOCAL)."""

    def begin(mode: int = THREAD_LOCAL) -> Any:
        _, _, highest = driver.cuCtxGetStreamPriorityRange()
        stream = good(driver.cuStreamCreateWithPriority(1, highest))
        good(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode(mode)))
        return stream

    return begin


def elsewhere(driver: ModuleType, work: Callable[[], tuple[Any, ...]], *, context: bool = True) -> int:
    """The driver's answer to what another thread does, in the same context or in none."""
    here = good(driver.cuCtxGetCurrent())
    codes: list[int] = []

    def run() -> None:
        if context:
            driver.cuCtxSetCurrent(here)
        codes.append(int(work()[0]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return codes[0]


def test_without_a_context_nothing_can_be_made(driver: ModuleType, pycuda: Any) -> None:
    assert elsewhere(driver, lambda: driver.cuMemAlloc(256), context=False) == NO_CONTEXT


def test_the_primary_context_may_be_told_to_spin_and_not_to_map(driver: ModuleType) -> None:
    flags = driver.CUctx_flags
    spin, mapped = int(flags.CU_CTX_SCHED_SPIN), int(flags.CU_CTX_MAP_HOST)
    assert driver.cuDevicePrimaryCtxSetFlags(0, spin)[0] == 0
    assert driver.cuDevicePrimaryCtxSetFlags(0, spin | mapped)[0] == INVALID_VALUE


def test_a_graph_does_what_was_captured_each_time_it_is_launched(
    driver: ModuleType, pycuda: Any, begin_capture: Callable[..., Any]
) -> None:
    copies = Copies(pycuda)
    stream = begin_capture()
    good(driver.cuMemcpyHtoDAsync(int(copies.device), copies.source.ctypes.data, 16, stream))
    good(driver.cuMemcpyDtoHAsync(copies.target.ctypes.data, int(copies.device), 16, stream))
    graph = good(driver.cuStreamEndCapture(stream))
    assert copies.target.tolist() == [0.0] * 4, "capturing runs nothing"
    executable = good(driver.cuGraphInstantiate(graph, 0))
    good(driver.cuGraphDestroy(graph))
    for value in (3.0, 4.0):
        copies.source[:] = value
        good(driver.cuGraphLaunch(executable, copies.stream.handle))
        copies.stream.synchronize()
        assert copies.target.tolist() == [value] * 4
    good(driver.cuGraphExecDestroy(executable))
    good(driver.cuStreamDestroy(stream))


@pytest.mark.parametrize("what", ["query", "record", "launch"])
def test_a_capture_leaves_a_thread_that_serves_alone(
    driver: ModuleType, pycuda: Any, begin_capture: Callable[..., Any], what: str
) -> None:
    """What the loop does while a reload captures beside it."""
    copies = Copies(pycuda)
    captured = begin_capture()
    good(driver.cuMemcpyHtoDAsync(int(copies.device), copies.source.ctypes.data, 16, captured))
    graph = good(driver.cuStreamEndCapture(captured))
    executable = good(driver.cuGraphInstantiate(graph, 0))
    event = good(driver.cuEventCreate(2))
    work = {
        "query": lambda: driver.cuStreamQuery(copies.stream.handle),
        "record": lambda: driver.cuEventRecord(event, copies.stream.handle),
        "launch": lambda: driver.cuGraphLaunch(executable, copies.stream.handle),
    }[what]
    stream = begin_capture(THREAD_LOCAL)
    assert elsewhere(driver, work) == 0
    assert driver.cuStreamEndCapture(stream)[0] == 0
    copies.stream.synchronize()


def test_a_capture_in_global_mode_forbids_others_to_allocate(
    driver: ModuleType, pycuda: Any, begin_capture: Callable[..., Any]
) -> None:
    stream = begin_capture(GLOBAL)
    assert elsewhere(driver, lambda: driver.cuMemAlloc(256)) == CAPTURE_UNSUPPORTED
    assert driver.cuStreamEndCapture(stream)[0] == CAPTURE_INVALIDATED


def test_allocating_breaks_the_capture_of_its_thread(
    driver: ModuleType, pycuda: Any, begin_capture: Callable[..., Any]
) -> None:
    stream = begin_capture()
    assert driver.cuMemAlloc(256)[0] == CAPTURE_UNSUPPORTED
    assert driver.cuStreamEndCapture(stream)[0] == CAPTURE_INVALIDATED


def test_an_event_never_recorded_has_come(pycuda: Any) -> None:
    assert Copies(pycuda).event.query()


def test_an_event_comes_with_the_work_before_it(pycuda: Any) -> None:
    copies = Copies(pycuda)
    copies.start()
    while not copies.event.query():
        pass
    assert copies.target.tolist() == [1.0] * 4


def test_more_memory_than_there_is_cannot_be_had(pycuda: Any) -> None:
    _, total = pycuda.mem_get_info()
    with pytest.raises(pycuda.MemoryError, match="out of memory"):
        pycuda.mem_alloc(2 * total)
    copies = Copies(pycuda)
    copies.start()
    copies.stream.synchronize()
    assert copies.target.tolist() == [1.0] * 4, "and nothing else is the worse for it"
