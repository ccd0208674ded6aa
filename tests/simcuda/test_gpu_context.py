"""sigd.models.gpu.cuda on the simulated driver: contexts, threads, lanes, errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import numpy as np
import pytest

from sigd.models.errors import BackendUnavailable
from sigd.models.gpu.cuda import CudaError, Gpu, gpu_facts
from sigd.models.gpu.stream import (
    Lane,
    device_memory,
    free_device_memory,
    free_pinned,
    mapped_address,
    pinned_rows,
)

ILLEGAL_ADDRESS, LAUNCH_FAILED, INVALID_CONTEXT = 700, 719, 201


def run_python(lines: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", "\n".join(lines)],
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def gpu(control: Any) -> Iterator[Gpu]:
    gpu = Gpu.acquire(0)
    gpu.make_current()
    yield gpu
    control.fix()
    gpu.release()


@pytest.fixture
def lane(gpu: Gpu, control: Any) -> Iterator[Lane]:
    lane = gpu.run(lambda: Lane(gpu))
    yield lane
    control.fix()
    gpu.run(lambda: lane.close([]))


def test_a_gpu_is_known_without_a_context(control: Any) -> None:
    retained = control.calls_of("cuDevicePrimaryCtxRetain")
    facts = gpu_facts(0)
    assert (facts.index, facts.name, facts.compute_capability) == (0, "Simulated GPU", "8.6")
    assert facts.pci_bus_id == "0000:01:00.0"
    assert control.calls_of("cuDevicePrimaryCtxRetain") == retained


def test_a_gpu_that_is_not_there_is_refused(control: Any) -> None:
    for index in (1, -1):
        with pytest.raises(BackendUnavailable, match=f"GPU {index} was asked for, CUDA sees 1"):
            gpu_facts(index)


@pytest.mark.parametrize(("setting", "eager"), [(None, 1), ("LAZY", 0)])
def test_kernels_are_loaded_eagerly_unless_it_was_set(setting: str | None, eager: int) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "CUDA_MODULE_LOADING"}
    if setting:
        variables["CUDA_MODULE_LOADING"] = setting
    lines = (
        "import simcuda_control",
        "from sigd.models.gpu.cuda import gpu_facts",
        "gpu_facts(0)",
        "print(simcuda_control.loaded().eager_loading)",
    )
    assert run_python(lines, variables).stdout == f"{eager}\n"


def test_the_context_is_shared_and_goes_with_its_last_user(control: Any) -> None:
    released = control.calls_of("cuDevicePrimaryCtxRelease")
    first, second = Gpu.acquire(0), Gpu.acquire(0)
    assert first is second
    first.release()
    assert control.calls_of("cuDevicePrimaryCtxRelease") == released
    second.release()
    assert control.calls_of("cuDevicePrimaryCtxRelease") == released + 1
    third = Gpu.acquire(0)
    assert third is not first
    third.release()


def test_waiting_for_the_gpu_spins(gpu: Gpu) -> None:
    flags = gpu.run(lambda: gpu.checked("cuCtxGetFlags", gpu.driver.cuCtxGetFlags()))
    assert int(flags) & int(gpu.driver.CUctx_flags.CU_CTX_SCHED_SPIN)


def test_work_on_the_gpu_is_done_by_its_owner(gpu: Gpu) -> None:
    owners = {gpu.run(threading.get_ident) for _ in range(3)}
    assert len(owners) == 1
    assert threading.get_ident() not in owners
    assert gpu.run(lambda: gpu.run(threading.get_ident)) in owners


def test_a_thread_needs_the_context_before_it_may_launch(gpu: Gpu, lane: Lane) -> None:
    codes: list[int] = []

    def elsewhere() -> None:
        codes.append(int(gpu.driver.cuStreamQuery(lane.handle)[0]))
        gpu.make_current()
        codes.append(int(gpu.driver.cuStreamQuery(lane.handle)[0]))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert codes == [INVALID_CONTEXT, 0]


def test_a_capture_runs_in_order_and_with_the_highest_priority(gpu: Gpu, lane: Lane) -> None:
    source, target = gpu.run(lambda: (pinned_rows(gpu, 2, 3), pinned_rows(gpu, 2, 3)))
    memory = gpu.run(lambda: device_memory(gpu, source.nbytes))
    priorities: list[int] = []

    def record(stream: int) -> None:
        priorities.append(gpu.checked("cuStreamGetPriority", gpu.driver.cuStreamGetPriority(stream)))
        lane.copy_in(memory, source, stream)
        lane.copy_out(target, memory, stream)

    graph = gpu.run(lambda: lane.capture(record))
    source[:] = 7.0
    lane.launch(graph)
    lane.finish(1000)
    assert priorities == [-5]
    assert target.tolist() == [[7.0] * 3] * 2
    for free in (
        partial(free_device_memory, gpu, memory),
        partial(free_pinned, gpu, source),
        partial(free_pinned, gpu, target),
    ):
        gpu.run(free)


@pytest.mark.parametrize("what", ["device memory", "pinned memory"])
def test_freeing_waits_for_the_gpu_and_keeps_no_other_thread_waiting(
    gpu: Gpu, lane: Lane, control: Any, what: str
) -> None:
    """With Python's lock held it would for ever, where the GPU's work needs the loop."""
    source, spare = gpu.run(lambda: (pinned_rows(gpu, 2, 3), pinned_rows(gpu, 2, 3)))
    memory, unused = gpu.run(lambda: (device_memory(gpu, source.nbytes), device_memory(gpu, 256)))
    free = (
        partial(free_device_memory, gpu, unused)
        if what == "device memory"
        else partial(free_pinned, gpu, spare)
    )
    control.hang = 1
    lane.copy_in(memory, source, lane.stream.handle)
    with ThreadPoolExecutor(1) as executor:
        freeing = executor.submit(gpu.run, free)
        assert not wait([freeing], timeout=0.1).done
        control.hang = 0
        freeing.result(60)


def test_pinned_rows_are_zeros_that_the_gpu_can_address(gpu: Gpu) -> None:
    rows = gpu.run(lambda: pinned_rows(gpu, 3, 5))
    assert rows.shape == (3, 5)
    assert rows.dtype == np.float32
    assert not rows.any()
    assert gpu.run(lambda: mapped_address(gpu, rows)) == rows.ctypes.data
    gpu.run(lambda: free_pinned(gpu, rows))


def test_a_failed_capture_leaves_the_lane_usable(gpu: Gpu, lane: Lane) -> None:
    def record(stream: int) -> None:
        gpu.checked("cuMemAlloc", gpu.driver.cuMemAlloc(256))

    with pytest.raises(CudaError, match="cuMemAlloc: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        gpu.run(lambda: lane.capture(record))
    graph = gpu.run(lambda: lane.capture(lambda stream: None))
    lane.launch(graph)
    lane.finish(1000)


def test_a_capture_that_breaks_at_its_end_is_an_error(gpu: Gpu, lane: Lane) -> None:
    def record(stream: int) -> None:
        gpu.driver.cuMemAlloc(256)

    with pytest.raises(CudaError, match="cuStreamEndCapture: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        gpu.run(lambda: lane.capture(record))


def test_waiting_ends_after_its_time(gpu: Gpu, lane: Lane, control: Any) -> None:
    control.hang = 1
    with pytest.raises(CudaError, match="did not finish within 20 ms") as failure:
        lane.finish(20)
    assert failure.value.sticky


@pytest.mark.parametrize(
    ("code", "sticky"), [(ILLEGAL_ADDRESS, True), (LAUNCH_FAILED, True), (2, False), (1, False)]
)
def test_an_error_of_cuda_bindings_has_its_number(gpu: Gpu, control: Any, code: int, sticky: bool) -> None:
    control.fail("cuGraphLaunch", code)
    with pytest.raises(CudaError, match=rf"cuGraphLaunch: CUDA_ERROR_\w+ \({code}\)") as failure:
        gpu.checked("cuGraphLaunch", gpu.driver.cuGraphLaunch(0, 0))
    assert (failure.value.code, failure.value.sticky) == (code, sticky)


def test_an_error_of_pycuda_gets_its_number_from_the_dead_context(gpu: Gpu, control: Any) -> None:
    control.fail("cuMemGetInfo", LAUNCH_FAILED)
    with pytest.raises(CudaError, match=r"CUDA_ERROR_LAUNCH_FAILED \(719\)") as failure:
        gpu.memory()
    assert (failure.value.code, failure.value.sticky) == (LAUNCH_FAILED, True)


def test_memory_that_cannot_be_had_is_told_from_other_errors(gpu: Gpu, control: Any) -> None:
    control.cotenant_bytes = control.total_bytes
    with pytest.raises(CudaError) as failure:
        gpu.run(lambda: gpu.pycuda.mem_alloc(1 << 20))
    assert (failure.value.code, failure.value.sticky) == (2, False)


def test_a_number_without_a_name_is_shown_all_the_same(gpu: Gpu) -> None:
    assert (
        gpu.error_name(gpu.driver.CUresult.CUDA_ERROR_ECC_UNCORRECTABLE)
        == "CUDA_ERROR_ECC_UNCORRECTABLE (214)"
    )
    assert (
        gpu.error_name(int(gpu.driver.CUresult.CUDA_ERROR_NVLINK_UNCORRECTABLE))
        == "CUDA_ERROR_NVLINK_UNCORRECTABLE (220)"
    )


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("gpu.release()", 0),
        ("pass", 0),
        ("raise SystemExit(7)", 7),
        ("control.sticky = 700; gpu.abandon(lane); raise SystemExit(7)", 7),
    ],
    ids=["released", "not released", "exit", "dead"],
)
def test_a_process_ends_in_its_own_way(ending: str, expected: int) -> None:
    """Not aborted by a context that is still current, nor noisy about one that is dead."""
    lines = (
        "import simcuda_control",
        "from sigd.models.gpu.cuda import Gpu",
        "from sigd.models.gpu.stream import Lane",
        "control = simcuda_control.loaded()",
        "gpu = Gpu.acquire(0)",
        "gpu.make_current()",
        "lane = gpu.run(lambda: Lane(gpu))",
        "kept = None",
        ending,
    )
    done = run_python(lines, dict(os.environ))
    assert done.returncode == expected, done.stderr
    if ending != "pass":
        assert "PyCUDA" not in done.stderr
