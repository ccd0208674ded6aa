"""The TensorRT backend on the simulated driver, with real PyCUDA and cuda-bindings: what the conformance
suite does not ask, for it is about the device. Counts are the driver's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.errors import BackendFailed

if TYPE_CHECKING:
    from tests.simcuda.conftest import EngineMaker, Open

Float32Array = npt.NDArray[np.float32]
RunBatch = Callable[[Any, Float32Array], Float32Array]
FEATURES, ROWS = 4, 8
ALLOCATING = (
    "cuMemAlloc",
    "cuMemHostAlloc",
    "cuStreamCreate",
    "cuStreamCreateWithPriority",
    "cuEventCreate",
    "cuGraphInstantiate",
)


def rows_of(value: float, rows: int = 1) -> Float32Array:
    return np.full((rows, FEATURES), value, np.float32)


def calls_made(control: Any, before: dict[str, int]) -> dict[str, int]:
    now = control.all_calls()
    return {name: made - before[name] for name, made in now.items() if made != before[name]}


# -- what a batch costs
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize("rows", [1, 3, ROWS])
def test_a_batch_is_one_launch_and_one_event(
    open_engine: Open, control: Any, rows: int, mapped: bool
) -> None:
    backend = open_engine(mapped_io=mapped)
    backend.inputs[:rows] = 3.0
    before = control.all_calls()
    assert backend.submit(rows) is False
    while not backend.ready():
        pass
    made = calls_made(control, before)
    queries = made.pop("cuEventQuery")
    assert made == {"cuGraphLaunch": 1, "cuEventRecord": 1}
    assert queries == 1, "without device time the first question finds it finished"
    assert backend.outputs[:rows].tolist() == [[6.0] * FEATURES] * rows


def test_nothing_is_allocated_after_the_start(open_engine: Open, control: Any, run_batch: RunBatch) -> None:
    backend = open_engine(keep_warm_us=1)
    before, memory = control.all_calls(), (control.device_bytes, control.pinned_bytes)
    for batch in range(200):
        rows = batch % ROWS + 1
        assert run_batch(backend, rows_of(batch, rows)).tolist() == [[2.0 * batch] * FEATURES] * rows
        backend.keep_warm()
    made = calls_made(control, before)
    assert not {name: made[name] for name in ALLOCATING if name in made}
    assert (control.device_bytes, control.pinned_bytes) == memory


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_either_runtime_serves(
    open_engine: Open, make_engine: EngineMaker, control: Any, run_batch: RunBatch, runtime: str
) -> None:
    """TensorRT-RTX compiles kernels when it first meets a shape, and says whether a context may be
    captured."""
    backend = open_engine(make_engine(runtime=runtime))
    before = control.all_calls()
    assert run_batch(backend, rows_of(3.0, 5)).tolist() == [[6.0] * FEATURES] * 5
    assert calls_made(control, before) == {"cuGraphLaunch": 1, "cuEventRecord": 1, "cuEventQuery": 1}


def test_every_bucket_runs_twice_as_a_graph_before_the_first_request(open_engine: Open, control: Any) -> None:
    before = control.all_calls()
    open_engine()
    made = calls_made(control, before)
    assert made["cuGraphInstantiate"] == made["cuGraphUpload"] == len((1, 2, 4, 8))
    assert made["cuGraphLaunch"] == 2 * len((1, 2, 4, 8))


@pytest.mark.parametrize(
    ("batches", "launched"),
    [
        ({"rows_max": 8}, {1: 1, 2: 2, 3: 4, 5: 8, 8: 8}),
        ({"rows_min": 1, "rows_opt": 8, "rows_max": 8}, {1: 1, 3: 4, 8: 8}),
        ({"buckets": (1, 8)}, {1: 1, 2: 8, 8: 8}),
        ({"rows_min": 4, "rows_opt": 8, "rows_max": 16}, {1: 4, 5: 8, 8: 8}),
    ],
    ids=["a profile for each bucket", "one profile", "two buckets", "at least four rows"],
)
def test_rows_run_in_the_smallest_batch_that_holds_them(
    open_engine: Open,
    make_engine: EngineMaker,
    run_batch: RunBatch,
    batches: dict[str, Any],
    launched: dict[int, int],
) -> None:
    backend = open_engine(make_engine(**batches))
    for rows, size in launched.items():
        backend.outputs[:] = -1.0
        run_batch(backend, rows_of(1.0, rows))
        written = int((backend.outputs[:, 0] != -1.0).sum())
        assert written == min(size, ROWS)


# -- the device's time -----------------------------------------------------------------------------------


def test_a_batch_is_ready_when_the_device_has_finished_and_not_before(
    open_engine: Open, control: Any
) -> None:
    backend = open_engine()
    control.stop_clock()
    control.copy_ns, control.kernel_ns = 1000, 20_000
    backend.inputs[0] = 5.0
    backend.outputs[0] = -1.0
    backend.submit(1)
    for passed, finished in ((0, False), (21_999, False), (1, True)):
        control.advance(passed)
        assert backend.ready() is finished
        assert backend.outputs[0].tolist() == [10.0 if finished else -1.0] * FEATURES


def test_a_stall_is_waited_for(open_engine: Open, control: Any) -> None:
    backend = open_engine()
    control.stop_clock()
    control.stall_ns = 400_000_000
    backend.inputs[0] = 1.0
    backend.submit(1)
    assert not backend.ready()
    control.advance(400_000_000)
    assert backend.ready()
    assert backend.outputs[0].tolist() == [2.0] * FEATURES


def test_mapped_rows_are_read_and_written_in_place(
    open_engine: Open, control: Any, run_batch: RunBatch
) -> None:
    backend = open_engine(mapped_io=True)
    before = control.calls_of("cuMemcpyHtoDAsync") + control.calls_of("cuMemcpyDtoHAsync")
    assert run_batch(backend, rows_of(4.0, 3)).tolist() == [[8.0] * FEATURES] * 3
    assert control.calls_of("cuMemcpyHtoDAsync") + control.calls_of("cuMemcpyDtoHAsync") == before


# -- keeping warm ----------------------------------------------------------------------------------------


def test_an_idle_gpu_is_not_touched_unless_asked(open_engine: Open, control: Any) -> None:
    backend = open_engine()
    before = control.all_calls()
    backend.keep_warm()
    assert calls_made(control, before) == {}


def test_keeping_warm_runs_a_batch_that_touches_no_clients_rows(
    open_engine: Open, control: Any, run_batch: RunBatch
) -> None:
    backend = open_engine(keep_warm_us=1)
    run_batch(backend, rows_of(3.0, ROWS))
    inputs, outputs = backend.inputs.copy(), backend.outputs.copy()
    before = control.all_calls()
    while "cuGraphLaunch" not in calls_made(control, before):
        backend.keep_warm()
    assert backend.inputs.tobytes() == inputs.tobytes()
    assert backend.outputs.tobytes() == outputs.tobytes()
    assert run_batch(backend, rows_of(4.0)).tolist() == [[8.0] * FEATURES]


def test_a_batch_under_way_and_an_empty_one_under_way_keep_it_warm_enough(
    open_engine: Open, control: Any
) -> None:
    backend = open_engine(keep_warm_us=1)
    control.stop_clock()
    control.kernel_ns = 1000
    before = control.calls_of("cuGraphLaunch")
    for _ in range(3):
        backend.keep_warm()
    assert control.calls_of("cuGraphLaunch") <= before + 1
    control.advance(1000)
    backend.submit(1)
    submitted = control.calls_of("cuGraphLaunch")
    for _ in range(3):
        backend.keep_warm()
    assert control.calls_of("cuGraphLaunch") == submitted


# -- failures --------------------------------------------------------------------------------------------


def wait_for(backend: Any) -> None:
    while not backend.ready():
        pass


def assert_finished(backend: Any) -> None:
    """After a fatal failure every call says so again, and closing does not touch the device."""
    for call in (lambda: backend.submit(1), backend.ready, lambda: backend.bare_call(1)):
        with pytest.raises(BackendFailed, match="cannot be used by this process any more") as again:
            call()
        assert again.value.fatal
    backend.close()


@pytest.mark.parametrize("code", [214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 810, 999])
def test_a_kernel_that_dies_is_fatal(open_engine: Open, control: Any, code: int) -> None:
    backend = open_engine()
    control.kernel_fault = code
    backend.submit(1)
    with pytest.raises(BackendFailed, match=rf"Simulated GPU.*\({code}\)") as failure:
        wait_for(backend)
    assert failure.value.fatal
    assert_finished(backend)


@pytest.mark.parametrize("call", ["cuGraphLaunch", "cuEventRecord"])
def test_a_context_that_is_found_dead_at_submit_is_fatal(open_engine: Open, control: Any, call: str) -> None:
    backend = open_engine()
    control.fail(call, 719)
    with pytest.raises(BackendFailed, match=r"CUDA_ERROR_LAUNCH_FAILED \(719\)") as failure:
        backend.submit(2)
    assert failure.value.fatal
    assert_finished(backend)


def test_an_event_that_cannot_be_recorded_is_fatal_whatever_the_reason(
    open_engine: Open, control: Any
) -> None:
    """The batch has been started, and no one would learn when it ends."""
    backend = open_engine()
    control.fail("cuEventRecord", 2)
    with pytest.raises(BackendFailed) as failure:
        backend.submit(1)
    assert failure.value.fatal


def test_a_launch_without_memory_fails_its_batch_alone(
    open_engine: Open, control: Any, run_batch: RunBatch
) -> None:
    backend = open_engine()
    control.fail("cuGraphLaunch", 2)
    with pytest.raises(BackendFailed, match=r"a batch of 1 rows: CUDA_ERROR_OUT_OF_MEMORY \(2\)") as failure:
        backend.submit(1)
    assert not failure.value.fatal
    assert run_batch(backend, rows_of(1.0)).tolist() == [[2.0] * FEATURES]


def test_a_batch_that_never_comes_back_is_fatal_after_its_time(open_engine: Open, control: Any) -> None:
    backend = open_engine(device_timeout_ms=30)
    control.hang = 1
    backend.submit(1)
    with pytest.raises(BackendFailed, match="did not finish within 30 ms") as failure:
        wait_for(backend)
    assert failure.value.fatal
    # The device still hangs: a close that frees anything would never return.
    assert_finished(backend)


def test_the_time_of_a_batch_starts_with_the_first_question(open_engine: Open, control: Any) -> None:
    """A daemon that was busy elsewhere must not take its own delay for the GPU's."""
    backend = open_engine(device_timeout_ms=1)
    control.stop_clock()
    control.kernel_ns = 1000
    backend.submit(1)
    threading.Event().wait(0.01)
    assert not backend.ready()
    control.advance(1000)
    assert backend.ready()


def test_closing_on_a_gpu_that_hangs_returns(
    open_engine: Open, control: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = open_engine()
    control.hang = 1
    backend.submit(1)
    backend.close()
    assert "is freed with the process only" in caplog.text
