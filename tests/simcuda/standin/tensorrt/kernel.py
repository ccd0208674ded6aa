"""The "kernel" of the stand-in: a model run by ONNX Runtime on device memory, as a host function on a
stream."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import simcuda_control  # type: ignore[import-not-found]

_ILLEGAL_ADDRESS = 700
_C_LIBRARY = ctypes.CDLL(None)
_DRIVER = ctypes.CDLL("libcuda.so.1")
_FE_DFL_ENV = ctypes.c_void_p(-1)
_Floats = npt.NDArray[np.float32]
_HostFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
NOTHING = "STANDIN_KERNEL_DOES_NOTHING"
"""Environment variable: with it a kernel takes no time and writes nothing, for measuring what everything else
costs."""


class Kernel:
    """A model, loaded."""

    def __init__(self, onnx: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        (self.input,), (self.output,) = self.session.get_inputs(), self.session.get_outputs()

    def run(self, features: _Floats) -> _Floats:
        """One batch."""
        (answer,) = self.session.run(None, {self.input.name: features})
        return np.asarray(answer, np.float32)


class Launch:
    """A kernel with its arguments: what a graph keeps of an `execute_async_v3`. Lives as long as the object
    that queued it."""

    def __init__(
        self, kernel: Kernel, source: int, in_shape: tuple[int, ...], target: int, out_shape: tuple[int, ...]
    ) -> None:
        def run(_: int) -> None:
            try:
                with _device_float_environment():
                    memory_at(target, out_shape)[:] = kernel.run(memory_at(source, in_shape))
            except Exception:  # noqa: BLE001
                # A kernel cannot report an error: a fault kills the context.
                simcuda_control.loaded().sticky = _ILLEGAL_ADDRESS

        nothing = os.environ.get(NOTHING)
        self._function: Any = _DRIVER.simcuda_nothing if nothing else _HostFunction(run)

    def queue(self, stream: int) -> int:
        """Queue it on a stream; the driver's answer. Not through cuda-bindings: some of its releases wrap the
        function in data that they free after the first call, and a graph calls it many times."""
        code: int = _DRIVER.cuLaunchHostFunc(ctypes.c_void_p(stream), self._function, None)
        return code


def memory_at(address: int, shape: tuple[int, ...]) -> _Floats:
    """Device memory as an array: here it is host memory."""
    size = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * size).from_address(address)).reshape(shape)


@contextmanager
def _device_float_environment() -> Iterator[None]:
    """Denormals are numbers on a GPU, whatever the calling thread makes of them."""
    kept = (ctypes.c_uint32 * 64)()
    _C_LIBRARY.fegetenv(kept)
    _C_LIBRARY.fesetenv(_FE_DFL_ENV)
    try:
        yield
    finally:
        _C_LIBRARY.fesetenv(kept)
