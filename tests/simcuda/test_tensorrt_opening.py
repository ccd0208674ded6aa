"""Opening and closing the TensorRT backend on the simulated driver: what it holds, what it refuses, what it
says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.backend import OnGpu
from sigd.models.errors import BackendClosed, BackendFailed, BackendUnavailable, ModelRefused
from sigd.models.gpu.options import GpuOptions
from sigd.models.gpu.tensorrt import tensorrt_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker
    from tests.simcuda.conftest import EngineMaker, Open

Float32Array = npt.NDArray[np.float32]
RunBatch = Callable[[Any, Float32Array], Float32Array]
FEATURES, ROWS = 4, 8


def rows_of(value: float, rows: int = 1) -> Float32Array:
    return np.full((rows, FEATURES), value, np.float32)


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


def test_it_says_on_which_card_it_is(open_engine: Open) -> None:
    backend = open_engine()
    on_gpu: OnGpu = backend
    assert on_gpu.pci_bus_id.count(":") == 2
    backend.close()
    assert on_gpu.pci_bus_id == ""


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
    control.fail("cuMemAlloc", 2, nth=nth)
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


@pytest.mark.parametrize(("code", "said"), [(2, "is too full for a context"), (101, "gives no context")])
def test_a_gpu_without_a_context_says_what_to_look_at(
    make_engine: EngineMaker, control: Any, code: int, said: str
) -> None:
    engine = make_engine()
    control.fail("cuDevicePrimaryCtxRetain", code)
    error = failing_open(engine)
    assert isinstance(error, BackendUnavailable)
    assert said in str(error)


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


def test_an_engine_that_cannot_be_captured_is_refused(
    make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(runtime="tensorrt-rtx")
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx.IExecutionContext, "is_stream_capturable", lambda context, stream: False)
    error = failing_open(engine)
    assert isinstance(error, ModelRefused)
    assert "tensorrt-rtx 1.7.1.116 refuses it: is_stream_capturable failed" in str(error)
