"""The kernel of the stand-in where the driver is a real one: dense models, by CUDA kernels compiled for the
card.

It is no measure of TensorRT. What it proves is everything around it: memory, streams, capture, graphs,
events, errors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from cuda.bindings import driver, nvrtc
from onnx import numpy_helper

_SOURCE: Final = """
extern "C" __global__ void dense(const float* x, const float* w, const float* b, float* y, int k, int n) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (column >= n) return;
    float sum = b ? b[column] : 0.0f;
    for (int i = 0; i < k; ++i) sum = fmaf(x[row * k + i], w[i * n + column], sum);
    y[row * n + column] = sum;
}
extern "C" __global__ void each(const float* x, const float* f, float* y, int fs, int n, int what) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, at = blockIdx.y * n + column;
    if (column >= n) return;
    float v = x[at];
    y[at] = what == 0 ? v * f[column % fs] : what == 1 ? (v < 0.0f ? 0.0f : v) : tanhf(v);
}
"""
_THREADS: Final = 64
_ROWS_MAX: Final = 1024
_EACH: Final = {"Mul": 0, "Relu": 1, "Tanh": 2, "Identity": 0, "Cast": 0}
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_Floats = npt.NDArray[np.float32]


class _Step(NamedTuple):
    """One launch: `arguments` behind the address of the values that it takes and before that of those it
    gives."""

    function: Any
    columns: int
    arguments: Callable[[int, int], tuple[tuple[Any, ...], tuple[Any, ...]]]


class _Tensor(NamedTuple):
    name: str
    shape: list[int | str]


class DenseKernel:
    """A model of dense layers and what is done to each of their outputs, on the device.

    Raises:
        ValueError: another operator is in it.
    """

    def __init__(self, content: bytes) -> None:
        graph = onnx.load_model_from_string(content).graph
        self.input, self.output = (_tensor(ends[0]) for ends in (graph.input, graph.output))
        self._held: list[int] = []
        self._weights = {
            weight.name: numpy_helper.to_array(weight).astype(np.float32) for weight in graph.initializer
        }
        functions = _functions()
        columns = int(np.prod([int(dim) for dim in self.input.shape[1:]]))
        widest = columns
        self.steps: list[_Step] = []
        at = self.input.name
        for node in graph.node:
            if node.input[0] != at or (node.op_type not in _EACH and node.op_type not in ("Gemm", "MatMul")):
                raise ValueError(f"{node.op_type} is not for this kernel")
            at = node.output[0]
            if node.op_type in _EACH:
                factors = self._weights[node.input[1]] if len(node.input) > 1 else np.ones(1, np.float32)
                step = self._each(functions["each"], factors, columns, _EACH[node.op_type])
            else:
                if any(
                    attribute.name in ("transA", "transB", "alpha", "beta") for attribute in node.attribute
                ):
                    raise ValueError("Gemm with attributes is not for this kernel")
                bias = self._weights[node.input[2]] if len(node.input) > 2 else None
                step = self._dense(functions["dense"], self._weights[node.input[1]], bias)
            self.steps.append(step)
            columns = step.columns
            widest = max(widest, columns)
        self.between = [self._allocate(_ROWS_MAX * widest * 4) for _ in range(2)]

    def __del__(self) -> None:
        for address in self._held:
            driver.cuMemFree(address)

    def _dense(self, function: Any, weights: _Floats, bias: _Floats | None) -> _Step:
        size, columns = weights.shape
        w, b = self._upload(weights), 0 if bias is None else self._upload(bias)
        types = (_POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT)
        return _Step(function, columns, lambda x, y: ((x, w, b, y, size, columns), types))

    def _each(self, function: Any, factors: _Floats, columns: int, what: int) -> _Step:
        f, count = self._upload(factors), factors.size
        types = (_POINTER, _POINTER, _POINTER, _INT, _INT, _INT)
        return _Step(function, columns, lambda x, y: ((x, f, y, count, columns, what), types))

    def _upload(self, values: _Floats) -> int:
        values = np.ascontiguousarray(values)
        address = self._allocate(values.nbytes)
        _good(driver.cuMemcpyHtoD(address, values.ctypes.data, values.nbytes))
        return address

    def _allocate(self, size_bytes: int) -> int:
        address = int(_good(driver.cuMemAlloc(size_bytes)))
        self._held.append(address)
        return address


class DenseLaunch:
    """A run of a kernel with its arguments."""

    def __init__(
        self,
        kernel: DenseKernel,
        source: int,
        in_shape: tuple[int, ...],
        target: int,
        out_shape: tuple[int, ...],
    ) -> None:
        ends = [kernel.between[step % 2] for step in range(len(kernel.steps) - 1)]
        self._rows = in_shape[0]
        self._launches = list(zip(kernel.steps, [source, *ends], [*ends, target], strict=True))

    def queue(self, stream: int) -> int:
        """Queue it on a stream; the driver's answer."""
        for step, x, y in self._launches:
            blocks = -(-step.columns // _THREADS)
            code = driver.cuLaunchKernel(
                step.function,
                *(blocks, self._rows, 1, _THREADS, 1, 1, 0),
                driver.CUstream(stream),
                step.arguments(x, y),
                0,
            )[0]
            if code:
                return int(code)
        return 0


def _tensor(value: Any) -> _Tensor:
    dims = value.type.tensor_type.shape.dim
    return _Tensor(
        value.name, [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]
    )


def _functions() -> dict[str, Any]:
    """The kernels, compiled for the device of the current context."""
    device = _good(driver.cuCtxGetDevice())
    attributes = driver.CUdevice_attribute
    major, minor = (
        _good(driver.cuDeviceGetAttribute(attribute, device))
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        )
    )
    cubin = compiled(f"sm_{major}{minor}")
    module = _good(driver.cuModuleLoadData(cubin))
    return {name: _good(driver.cuModuleGetFunction(module, name.encode())) for name in ("dense", "each")}


def compiled(architecture: str) -> bytes:
    """The kernels as machine code, for example of "sm_90"."""
    program = _good(nvrtc.nvrtcCreateProgram(_SOURCE.encode(), b"dense.cu", 0, [], []))
    _good(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture={architecture}".encode()]))
    cubin: bytes = b" " * _good(nvrtc.nvrtcGetCUBINSize(program))
    _good(nvrtc.nvrtcGetCUBIN(program, cubin))
    return cubin


def _good(answer: tuple[Any, ...]) -> Any:
    """The value in an answer of cuda-bindings. Raises MemoryError or RuntimeError."""
    code, *values = answer
    if int(code):
        raise (MemoryError if int(code) == 2 else RuntimeError)(str(code))
    return values[0] if values else None
