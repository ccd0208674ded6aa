"""The part of TensorRT's Python API that sigd uses: typed here, because the real bindings come without types.

    code that uses TensorRT  --mypy-->  these protocols  --contract test-->  the bindings of every version

A name that is misspelt in our code is an error of mypy's; one that is misspelt here, or has another signature
in some version, fails tests/simcuda/test_trt_contract.py, which reads the real bindings. Parameters carry the
names that the bindings give them. Nothing here is imported from TensorRT, and nothing here runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol


class Dims(Protocol):
    """A shape; -1 is an axis that is not fixed yet."""

    def __len__(self) -> int: ...

    def __getitem__(self, arg0: Any) -> Any: ...


class RuntimeConfig(Protocol):
    """IRuntimeConfig: how an execution context is made."""

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None: ...


class RtxRuntimeConfig(RuntimeConfig, Protocol):
    """IRuntimeConfig of TensorRT-RTX, which compiles kernels when they are first needed unless told
    otherwise."""

    cuda_graph_strategy: Any
    dynamic_shapes_kernel_specialization_strategy: Any


class ExecutionContext(Protocol):
    """IExecutionContext. The setters say False where they did nothing."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def infer_shapes(self) -> Sequence[str]: ...

    def get_tensor_shape(self, name: str) -> Dims: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class RtxExecutionContext(ExecutionContext, Protocol):
    """IExecutionContext of TensorRT-RTX."""

    def is_stream_capturable(self, stream: int) -> bool: ...


class Engine(Protocol):
    """ICudaEngine."""

    @property
    def num_io_tensors(self) -> int: ...

    @property
    def num_optimization_profiles(self) -> int: ...

    @property
    def device_memory_size_v2(self) -> int: ...

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> Any: ...

    def get_tensor_dtype(self, name: str) -> Any: ...

    def get_tensor_shape(self, name: str) -> Dims: ...

    def get_tensor_format(self, name: str) -> Any: ...

    def get_tensor_location(self, name: str) -> Any: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Dims]: ...

    def create_runtime_config(self) -> RuntimeConfig | None: ...

    def create_execution_context(self, runtime_config: Any) -> ExecutionContext | None: ...


class PlanRuntime(Protocol):
    """Runtime: made from a logger."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None: ...


class Logger(Protocol):
    """ILogger: to be derived from."""

    def log(self, severity: Any, msg: str) -> None: ...


class IoModes(Protocol):
    """Which way a tensor goes."""

    INPUT: Any
    OUTPUT: Any


class DataTypes(Protocol):
    """What a tensor is made of."""

    FLOAT: Any


class Formats(Protocol):
    """How a tensor lies in memory."""

    LINEAR: Any


class Locations(Protocol):
    """Where a tensor lies."""

    DEVICE: Any


class AllocationStrategies(Protocol):
    """How a context gets its scratch memory."""

    USER_MANAGED: Any


class Severities(Protocol):
    """ILogger.Severity, worst first."""

    INTERNAL_ERROR: Any
    ERROR: Any
    WARNING: Any


class GraphStrategies(Protocol):
    """Whether TensorRT-RTX captures graphs itself."""

    DISABLED: Any


class SpecializationStrategies(Protocol):
    """When kernels for a shape are compiled; TensorRT-RTX only."""

    EAGER: Any


class Module(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`."""

    __version__: str

    TensorIOMode: IoModes
    DataType: DataTypes
    TensorFormat: Formats
    TensorLocation: Locations
    ExecutionContextAllocationStrategy: AllocationStrategies
    ILogger: Any

    def Runtime(self, logger: Logger) -> PlanRuntime: ...  # noqa: N802


class RtxModule(Module, Protocol):
    """The module `tensorrt_rtx`."""

    CudaGraphStrategy: GraphStrategies
    DynamicShapesKernelSpecializationStrategy: SpecializationStrategies


CLASSES: Final[dict[str, type]] = {
    "IRuntimeConfig": RuntimeConfig,
    "IExecutionContext": ExecutionContext,
    "ICudaEngine": Engine,
    "Runtime": PlanRuntime,
    "ILogger": Logger,
    "Dims": Dims,
}
"""What each protocol describes, by its name in the bindings; so are the enumerations below."""
RTX_CLASSES: Final[dict[str, type]] = {
    **CLASSES,
    "IRuntimeConfig": RtxRuntimeConfig,
    "IExecutionContext": RtxExecutionContext,
}
ENUMERATIONS: Final[dict[str, type]] = {
    "TensorIOMode": IoModes,
    "DataType": DataTypes,
    "TensorFormat": Formats,
    "TensorLocation": Locations,
    "ExecutionContextAllocationStrategy": AllocationStrategies,
    "ILogger.Severity": Severities,
}
RTX_ENUMERATIONS: Final[dict[str, type]] = {
    **ENUMERATIONS,
    "CudaGraphStrategy": GraphStrategies,
    "DynamicShapesKernelSpecializationStrategy": SpecializationStrategies,
}
