"""The TensorRT backend on the simulated driver, with real PyCUDA and cuda-bindings: what the conformance suite does not
ask, for it is about the device. Counts are the driver's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.errors import BackendClosed, BackendFailed, BackendUnavailable, ModelRefused
from sigd.models.gpu_options import GpuOptions
from sigd.models.tensorrt import tensorrt_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
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


# -- what a batch costs ----------------------------------------------------------------------------------------------


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
    """TensorRT-RTX compiles kernels when it first meets a shape, and says whether a context may be captured."""
    backend = open_engine(make_engine(runtime=runtime))
    before = control.all_calls()
    assert run_batch(backend, rows_of(3.0, 5)).tolist() == [[6.0] * FEATURES] * 5
    assert calls_made(control, before) == {"cuGraphLaunch": 1, "cuEventRecord": 1, "cuEventQuery": 1}


def test_an_engine_that_cannot_be_captured_is_refused(
    make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(runtime="tensorrt-rtx")
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx.IExecutionContext, "is_stream_capturable", lambda context, stream: False)
    error = failing_open(engine)
    assert isinstance(error, ModelRefused)
    assert "tensorrt-rtx 1.7.1.116 refuses it: is_stream_capturable failed" in str(error)


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


# -- the device's time -----------------------------------------------------------------------------------------------


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


# -- keeping warm ----------------------------------------------------------------------------------------------------


def test_an_idle_gpu_is_left_alone_unless_asked(open_engine: Open, control: Any) -> None:
    backend = open_engine()
    before = control.all_calls()
    backend.keep_warm()
    assert calls_made(control, before) == {}


def test_keeping_warm_runs_a_batch_that_touches_nobodys_rows(
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


# -- failures --------------------------------------------------------------------------------------------------------


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
    """The batch has been started, and nobody would learn when it ends."""
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


# -- opening ---------------------------------------------------------------------------------------------------------


def test_closing_gives_everything_back(open_engine: Open, control: Any) -> None:
    def held() -> tuple[int, ...]:
        return control.device_bytes, control.pinned_bytes, control.streams, control.events, control.graphs

    before = held()
    backend = open_engine(keep_warm_us=1)
    assert all(now > then for now, then in zip(held(), before, strict=True))
    backend.close()
    assert held() == before


def test_it_opens_again_after_it_was_closed(open_engine: Open, run_batch: RunBatch) -> None:
    backend = open_engine()
    backend.close()
    backend.open()
    assert run_batch(backend, rows_of(2.0)).tolist() == [[4.0] * FEATURES]


def test_two_models_share_a_gpu(
    open_engine: Open, make_engine: EngineMaker, models: ModelMaker, run_batch: RunBatch
) -> None:
    doubled, tripled = open_engine(), open_engine(make_engine(models.scaled(3.0, FEATURES), rows_max=ROWS))
    for _ in range(2):
        assert run_batch(doubled, rows_of(1.0)).tolist() == [[2.0] * FEATURES]
        assert run_batch(tripled, rows_of(1.0)).tolist() == [[3.0] * FEATURES]
    doubled.close()
    assert run_batch(tripled, rows_of(5.0)).tolist() == [[15.0] * FEATURES]


def test_a_model_may_be_opened_and_closed_by_another_thread(open_engine: Open, run_batch: RunBatch) -> None:
    serving = open_engine()
    opened: list[Any] = []
    thread = threading.Thread(target=lambda: opened.append(open_engine()))
    thread.start()
    while thread.is_alive():
        assert run_batch(serving, rows_of(1.0)).tolist() == [[2.0] * FEATURES], "disturbed by a capture"
    (backend,) = opened
    assert run_batch(backend, rows_of(2.0)).tolist() == [[4.0] * FEATURES]
    thread = threading.Thread(target=backend.close)
    thread.start()
    thread.join()
    with pytest.raises(BackendClosed):
        backend.submit(1)


def failing_open(path: Path, **options: Any) -> Exception:
    backend = tensorrt_backend(path, ROWS, options=GpuOptions(**options))
    with pytest.raises(Exception, match=r".") as failure:
        backend.open()
    backend.close()
    return failure.value


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_memory_that_runs_out_at_the_start_names_who_holds_it(
    make_engine: EngineMaker, control: Any, nth: int
) -> None:
    engine = make_engine()
    held = control.device_bytes
    for call in (nth, nth + 1):  # PyCUDA asks twice, collecting garbage in between
        control.fail("cuMemAlloc", 2, nth=call)
    error = failing_open(engine)
    assert isinstance(error, BackendUnavailable)
    assert "the memory of GPU 0 (Simulated GPU) is too full" in str(error)
    assert "nvidia-smi --query-compute-apps" in str(error)
    assert control.device_bytes == held


def test_a_card_that_is_full_is_refused_before_anything_is_loaded(
    make_engine: EngineMaker, control: Any
) -> None:
    engine = make_engine()
    control.cotenant_bytes = control.total_bytes - 1000
    before = control.calls_of("cuMemAlloc")
    error = failing_open(engine)
    assert isinstance(error, BackendUnavailable)
    assert "MiB are free" in str(error)
    assert "nvidia-smi --query-compute-apps" in str(error)
    assert control.calls_of("cuMemAlloc") == before


@pytest.mark.parametrize(
    "call",
    [
        "cuStreamBeginCapture",
        "cuGraphInstantiate",
        "cuGraphUpload",
        "cuMemcpyHtoDAsync",
        "cuEventQuery",
    ],
)
def test_what_fails_at_the_start_is_said_and_nothing_stays_behind(
    make_engine: EngineMaker, control: Any, call: str
) -> None:
    engine = make_engine()
    held = control.device_bytes, control.pinned_bytes, control.streams, control.events
    control.fail(call, 801, nth=2)
    error = failing_open(engine)
    assert isinstance(error, BackendFailed)
    assert call in str(error)
    assert "CUDA_ERROR_NOT_SUPPORTED (801)" in str(error) or "not supported" in str(error)
    assert not error.fatal
    assert (control.device_bytes, control.pinned_bytes, control.streams, control.events) == held


def test_a_gpu_that_dies_at_the_start_is_fatal(make_engine: EngineMaker, control: Any) -> None:
    engine = make_engine()
    control.kernel_fault = 700
    error = failing_open(engine)
    assert isinstance(error, BackendFailed)
    assert error.fatal
    assert "CUDA_ERROR_ILLEGAL_ADDRESS (700)" in str(error)


def test_a_gpu_that_hangs_at_the_start_is_fatal(make_engine: EngineMaker, control: Any) -> None:
    engine = make_engine()
    control.hang = 1
    error = failing_open(engine, device_timeout_ms=20)
    assert isinstance(error, BackendFailed)
    assert error.fatal
    assert "did not finish within 200 ms" in str(error), "ten times what a later batch may take"


def test_a_gpu_without_a_context_says_what_to_look_at(make_engine: EngineMaker, control: Any) -> None:
    engine = make_engine()
    control.fail("cuDevicePrimaryCtxRetain", 2)
    error = failing_open(engine)
    assert isinstance(error, BackendUnavailable)
    assert "gives no context" in str(error)


def test_an_engine_for_another_gpu_is_refused_with_the_way_to_build_it(
    make_engine: EngineMaker, control: Any
) -> None:
    engine = make_engine()
    control.compute_capability = 89
    try:
        with pytest.raises(
            ModelRefused,
            match=r"built for compute capability 8\.6.*has 8\.9: build it again: sigd build-engine",
        ):
            tensorrt_backend(engine, ROWS)
    finally:
        control.compute_capability = 86


def test_an_engine_of_onnx_runtime_is_refused(
    make_engine: EngineMaker, models: ModelMaker, tmp_path: Path
) -> None:
    from sigd.models.build.pipeline import build_engine
    from sigd.models.build.request import BuildRequest

    engine = tmp_path / "cpu.engine"
    build_engine(BuildRequest(model=models.doubled(), engine=engine, runtime="onnxruntime"))
    with pytest.raises(ModelRefused, match="built for onnxruntime, expected an engine of TensorRT"):
        tensorrt_backend(engine, ROWS)


def test_a_model_that_was_not_built_is_refused_with_the_way_to_build_it(
    models: ModelMaker, control: Any
) -> None:
    with pytest.raises(ModelRefused, match=r"build one, sigd build-engine .*\.onnx --runtime tensorrt"):
        tensorrt_backend(models.doubled(), ROWS)


def test_a_larger_batch_than_was_built_is_refused(make_engine: EngineMaker, control: Any) -> None:
    with pytest.raises(ModelRefused, match="built for batches of at most 8 rows, asked for 9"):
        tensorrt_backend(make_engine(), 9)


def test_the_second_gpu_serves_when_it_is_asked_for(
    open_engine: Open, control: Any, run_batch: RunBatch
) -> None:
    control.devices = 2
    try:
        backend = open_engine(gpu=1)
        assert run_batch(backend, rows_of(1.0)).tolist() == [[2.0] * FEATURES]
        backend.close()
    finally:
        control.devices = 1
