"""The simulated driver itself: that it is as strict about order, time and misuse as a real one, and more.

What a real one can be asked as well is in tests/gpu/test_gpu_driver.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.gpu.copies import Copies, good

NOT_READY, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 600, 900, 901
THREAD_LOCAL, GLOBAL = 1, 0


@pytest.fixture
def driver() -> ModuleType:
    from cuda.bindings import driver

    module: ModuleType = driver
    return module


@pytest.fixture
def pycuda(driver: ModuleType, control: Any) -> Iterator[ModuleType]:
    """PyCUDA with a context current on this thread."""
    import pycuda.driver as pycuda

    pycuda.init()
    context = pycuda.Device(0).retain_primary_context()
    context.push()
    yield pycuda
    control.fix()
    context.pop()
    context.detach()
    driver.cuCtxSetCurrent(0)


def test_work_takes_effect_when_it_is_due_and_not_before(pycuda: Any, control: Any) -> None:
    copies = Copies(pycuda)
    control.stop_clock()
    control.copy_ns = 500
    copies.start()
    for passed, expected in ((0, 0.0), (999, 0.0), (1, 1.0)):
        control.advance(passed)
        assert copies.event.query() == bool(expected)
        assert copies.target.tolist() == [expected] * 4


def test_an_input_that_is_written_too_early_spoils_the_copy(pycuda: Any, control: Any) -> None:
    copies = Copies(pycuda)
    control.stop_clock()
    control.copy_ns = 500
    copies.start()
    copies.source[:] = 9.0
    copies.stream.synchronize()
    assert copies.target.tolist() == [9.0] * 4


def test_fresh_memory_holds_no_sensible_number(pycuda: Any) -> None:
    copies = Copies(pycuda)
    pycuda.memcpy_dtoh_async(copies.target, copies.device, copies.stream)
    copies.stream.synchronize()
    assert set(copies.target.tobytes()) == {0xA5}


def test_an_asynchronous_copy_wants_pinned_memory(pycuda: Any, capfd: pytest.CaptureFixture[str]) -> None:
    copies = Copies(pycuda)
    with pytest.raises(pycuda.Error, match="not supported"):
        pycuda.memcpy_htod_async(copies.device, np.zeros(4, np.float32), copies.stream)
    assert "not pinned" in capfd.readouterr().err


def test_a_copy_past_the_end_of_memory_is_refused(pycuda: Any) -> None:
    copies = Copies(pycuda)
    with pytest.raises(pycuda.LogicError, match="out of its range"):
        pycuda.memcpy_htod_async(int(copies.device) + 4, copies.source, copies.stream)


def test_memory_that_others_hold_cannot_be_had(pycuda: Any, control: Any) -> None:
    control.cotenant_bytes = control.total_bytes - (1 << 20)
    assert pycuda.mem_get_info() == ((1 << 20), control.total_bytes)
    with pytest.raises(pycuda.MemoryError, match="out of memory"):
        pycuda.mem_alloc(2 << 20)
    pycuda.mem_alloc(1 << 20).free()


def test_a_stream_of_another_context_is_not_to_be_asked(driver: ModuleType, pycuda: Any) -> None:
    """A real one answers a thread without a context; there is no need to rely on it."""
    stream = good(driver.cuStreamCreate(1))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(int(driver.cuStreamQuery(stream)[0])))
    thread.start()
    thread.join()
    assert codes == [201]
    good(driver.cuStreamDestroy(stream))


def test_a_graph_used_after_its_end_is_recognised(driver: ModuleType, pycuda: Any) -> None:
    stream = good(driver.cuStreamCreate(1))
    good(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode(1)))
    executable = good(driver.cuGraphInstantiate(good(driver.cuStreamEndCapture(stream)), 0))
    good(driver.cuGraphExecDestroy(executable))
    assert driver.cuGraphLaunch(executable, stream)[0] == 400


def test_a_handle_used_after_its_end_is_recognised(driver: ModuleType, pycuda: Any) -> None:
    stream = good(driver.cuStreamCreate(1))
    good(driver.cuStreamDestroy(stream))
    assert driver.cuStreamQuery(stream)[0] == 400


def test_a_stalled_piece_of_work_is_late_and_the_next_one_is_not(pycuda: Any, control: Any) -> None:
    copies = Copies(pycuda)
    control.stop_clock()
    control.stall_ns = 1_000_000
    copies.start()
    control.advance(999_999)
    assert not copies.event.query()
    control.advance(1)
    assert copies.event.query()
    copies.start()
    assert copies.event.query()


def test_on_a_device_that_hangs_nothing_finishes(pycuda: Any, control: Any) -> None:
    copies = Copies(pycuda)
    control.hang = 1
    copies.start()
    assert not copies.event.query()
    control.hang = 0
    assert copies.event.query()


@pytest.mark.parametrize("code", [700, 719])
def test_a_kernel_that_fails_kills_the_context(
    driver: ModuleType, pycuda: Any, control: Any, code: int
) -> None:
    from tensorrt.kernel import Launch

    copies = Copies(pycuda)
    launch = Launch(None, 0, (1,), 0, (1,))
    control.kernel_fault = code
    assert launch.queue(copies.stream.handle) == 0, "the launch itself is good"
    copies.event.record(copies.stream)
    with pytest.raises(pycuda.Error):
        copies.event.query()
    assert driver.cuMemGetInfo()[0] == driver.cuEventCreate(0)[0] == code


def test_a_call_fails_when_it_is_told_to(driver: ModuleType, pycuda: Any, control: Any) -> None:
    control.fail("cuMemGetInfo", 999, nth=2)
    assert [int(driver.cuMemGetInfo()[0]) for _ in range(3)] == [0, 999, 999]


def test_events_order_streams(driver: ModuleType, pycuda: Any, control: Any) -> None:
    first, second = Copies(pycuda), Copies(pycuda)
    control.stop_clock()
    control.copy_ns = 1000
    first.start()
    control.copy_ns = 0
    second.stream.wait_for_event(first.event)
    second.start()
    assert not second.event.query()
    control.advance(2000)
    assert second.event.query()


def test_every_call_is_counted(pycuda: Any, control: Any) -> None:
    copies = Copies(pycuda)
    before = control.all_calls()
    copies.start()
    assert {
        name: made - before[name] for name, made in control.all_calls().items() if made != before[name]
    } == {
        "cuMemcpyHtoDAsync": 1,
        "cuMemcpyDtoHAsync": 1,
        "cuEventRecord": 1,
    }
