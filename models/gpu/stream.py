"""What runs on a GPU, in order: a stream with its event, graphs captured on it, and pinned memory to copy
from and to."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from time import monotonic_ns
from typing import Any, Final

import numpy as np

from sigd.models.backend import Float32Array
from sigd.models.gpu.cuda import CudaError, Gpu

_FLOAT_BYTES: Final = 4
_STREAM_NON_BLOCKING: Final = 1
"""CU_STREAM_NON_BLOCKING: no implicit waiting for the default stream, which other users of the context may
use."""


class Lane:
    """A stream with an event at its end: what is launched runs in order, and the event tells when it has
    finished.

    To be made, used for capture and closed inside `Gpu.run`. What the hot path needs it takes out once:
    `stream` and `event` are PyCUDA's, `handle` is the stream as cuda-bindings wants it.
    """

    def __init__(self, gpu: Gpu) -> None:
        pycuda, driver = gpu.pycuda, gpu.driver
        self._gpu = gpu
        self.stream: Any = pycuda.Stream(_STREAM_NON_BLOCKING)
        self.event: Any = pycuda.Event(pycuda.event_flags.DISABLE_TIMING)
        self.handle: Any = driver.CUstream(self.stream.handle)
        # What is captured on a stream of high priority keeps it, whatever stream it is launched on. PyCUDA's
        # have none.
        code, _, highest = driver.cuCtxGetStreamPriorityRange()
        gpu.checked("cuCtxGetStreamPriorityRange", (code,))
        self._capture_stream: Any = gpu.checked(
            "cuStreamCreateWithPriority", driver.cuStreamCreateWithPriority(_STREAM_NON_BLOCKING, highest)
        )

    def capture(self, record: Callable[[int], None]) -> Any:
        """An executable graph of what `record` does on the stream whose address it is given.

        Raises:
            CudaError: something in it cannot be captured.
        """
        gpu, driver, stream = self._gpu, self._gpu.driver, self._capture_stream
        # In this mode a capture neither disturbs nor is disturbed by another thread, where a model may be
        # serving.
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        gpu.checked("cuStreamBeginCapture", driver.cuStreamBeginCapture(stream, mode))
        try:
            record(int(stream))
        except BaseException:
            driver.cuStreamEndCapture(stream)
            raise
        graph = gpu.checked("cuStreamEndCapture", driver.cuStreamEndCapture(stream))
        flags = int(driver.CUgraphInstantiate_flags.CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY)
        executable = gpu.checked("cuGraphInstantiate", driver.cuGraphInstantiate(graph, flags))
        gpu.checked("cuGraphDestroy", driver.cuGraphDestroy(graph))
        gpu.checked("cuGraphUpload", driver.cuGraphUpload(executable, self.handle))
        return executable

    def launch(self, executable: Any) -> None:
        """Start a captured graph."""
        self._gpu.checked("cuGraphLaunch", self._gpu.driver.cuGraphLaunch(executable, self.handle))

    def finish(self, timeout_ms: int) -> None:
        """Wait for all that was launched.

        Raises:
            CudaError: it failed, or did not finish in time.
        """
        self.event.record(self.stream)
        deadline_ns = monotonic_ns() + timeout_ms * 1_000_000
        while not self.event.query():
            if monotonic_ns() > deadline_ns:
                raise CudaError(f"the GPU did not finish within {timeout_ms} ms", sticky=True)

    def copy_in(self, device: int, host: Float32Array, stream: int) -> None:
        """Copy a pinned array to the GPU, in the order of `stream`."""
        answer = self._gpu.driver.cuMemcpyHtoDAsync(device, host.ctypes.data, host.nbytes, stream)
        self._gpu.checked("cuMemcpyHtoDAsync", answer)

    def copy_out(self, host: Float32Array, device: int, stream: int) -> None:
        """Copy from the GPU to a pinned array, in the order of `stream`."""
        answer = self._gpu.driver.cuMemcpyDtoHAsync(host.ctypes.data, device, host.nbytes, stream)
        self._gpu.checked("cuMemcpyDtoHAsync", answer)

    def close(self, executables: Iterable[Any]) -> None:
        """Destroy these graphs, the streams and the event; no other object may hold them any more."""
        gpu, driver = self._gpu, self._gpu.driver
        for executable in executables:
            gpu.checked("cuGraphExecDestroy", driver.cuGraphExecDestroy(executable))
        gpu.checked("cuStreamDestroy", driver.cuStreamDestroy(self._capture_stream))
        self.stream = self.event = self.handle = self._capture_stream = None


# PyCUDA keeps Python's lock while memory is taken and freed, and freeing waits for the device: a loop that
# serves another engine meanwhile would stand still. cuda-bindings lets go of it.


def pinned_rows(gpu: Gpu, rows: int, columns: int) -> Float32Array:
    """Zeros, float32, (rows, columns), in page-locked memory that the GPU can also address. Inside `Gpu.run`.

    Not write-combined: the daemon reads what it has written there, and that would cost it a bus access each
    time.
    """
    size_bytes = rows * columns * _FLOAT_BYTES
    flags = gpu.driver.CU_MEMHOSTALLOC_DEVICEMAP
    address = gpu.checked("cuMemHostAlloc", gpu.driver.cuMemHostAlloc(size_bytes, flags))
    # By way of bytes: an array of ctypes' floats has a type of its own, which a memoryview of it cannot read.
    memory = memoryview((ctypes.c_byte * size_bytes).from_address(int(address)))
    array: Float32Array = np.frombuffer(memory, np.float32)
    array[:] = 0.0
    return array.reshape(rows, columns)


def mapped_address(gpu: Gpu, array: Float32Array) -> int:
    """Where the GPU finds an array of `pinned_rows`."""
    answer = gpu.driver.cuMemHostGetDevicePointer(array.ctypes.data, 0)
    return int(gpu.checked("cuMemHostGetDevicePointer", answer))


def free_pinned(gpu: Gpu, array: Float32Array) -> None:
    """Free an array of `pinned_rows`, even while views of it exist. Inside `Gpu.run`."""
    gpu.checked("cuMemFreeHost", gpu.driver.cuMemFreeHost(array.ctypes.data))


def device_memory(gpu: Gpu, size_bytes: int) -> int:
    """The address of that much memory on the GPU. Inside `Gpu.run`. Raises CudaError."""
    return int(gpu.checked("cuMemAlloc", gpu.driver.cuMemAlloc(size_bytes)))


def free_device_memory(gpu: Gpu, address: int) -> None:
    """Free what `device_memory` gave. Inside `Gpu.run`. Raises CudaError."""
    gpu.checked("cuMemFree", gpu.driver.cuMemFree(address))
