"""Engines and their execution contexts."""

from __future__ import annotations

import json
from enum import IntEnum

import onnx
from cuda.bindings import driver

from tensorrt.device import Kernel, Launch
from tensorrt.logger import ILogger
from tensorrt.plan import Plan, read_plan

VERSION = "11.4.0.106"


class TensorIOMode(IntEnum):
    """Which way a tensor goes."""

    NONE = 0
    INPUT = 1
    OUTPUT = 2


class DataType(IntEnum):
    """What a tensor is made of."""

    FLOAT = 0


class TensorFormat(IntEnum):
    """How a tensor lies in memory."""

    LINEAR = 0


class LayerInformationFormat(IntEnum):
    """How an engine is described."""

    ONELINE = 0
    JSON = 1


class TensorLocation(IntEnum):
    """Where a tensor lies."""

    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(IntEnum):
    """Who gives a context its scratch memory."""

    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class Dims(tuple):  # type: ignore[type-arg]
    """A shape."""


class IHostMemory(bytes):
    """Bytes."""


class Runtime:
    """Loads engines."""

    version = VERSION

    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        """The engine of a plan, or None."""
        try:
            plan = read_plan(bytes(serialized_engine))
        except ValueError as error:
            self._say(f"Serialization assertion failed: {error}")
            return None
        if plan.version != self.version:
            self._say(f"the plan was built by version {plan.version}, this is {self.version}")
            return None
        _need_context()
        code, weights = driver.cuMemAlloc(plan.weights_bytes)
        if code:
            self._say(f"requested {plan.weights_bytes} bytes of GPU memory: {code.name} (out of memory)")
            return None
        try:
            return self.make_engine(plan, int(weights))
        except (MemoryError, ValueError) as error:
            driver.cuMemFree(weights)
            self._say(f"out of memory: {error}" if isinstance(error, MemoryError) else str(error))
            return None

    def make_engine(self, plan: Plan, weights: int) -> ICudaEngine:
        """The engine of a plan whose weights are on the device."""
        return ICudaEngine(plan, weights, self.logger)

    def _say(self, message: str) -> None:
        self.logger.log(ILogger.Severity.ERROR, message)


def _need_context() -> None:
    """TensorRT works through the CUDA runtime, which takes the primary context where a thread has none."""
    driver.cuInit(0)
    _, context = driver.cuCtxGetCurrent()
    if not int(context):
        _, context = driver.cuDevicePrimaryCtxRetain(0)
        driver.cuCtxSetCurrent(context)


class IRuntimeConfig:
    """How an execution context is made."""

    def __init__(self) -> None:
        self.strategy = ExecutionContextAllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        """Who gives the scratch memory."""
        self.strategy = strategy


class ICudaEngine:
    """An engine: one input, one output, weights on the device."""

    def __init__(self, plan: Plan, weights: int, logger: ILogger) -> None:
        self._weights = 0
        self.plan = plan
        self.logger = logger
        self.kernel = Kernel(plan.onnx)
        self._weights = weights
        self._shapes = {
            tensor.name: tuple(dim if isinstance(dim, int) else -1 for dim in tensor.shape)
            for tensor in (self.kernel.input, self.kernel.output)
        }

    def __del__(self) -> None:
        _need_context()
        if self._weights:
            driver.cuMemFree(self._weights)

    @property
    def num_io_tensors(self) -> int:
        """Inputs and outputs."""
        return len(self._shapes)

    @property
    def num_optimization_profiles(self) -> int:
        """At least one."""
        return len(self.plan.profiles) or 1

    @property
    def device_memory_size_v2(self) -> int:
        """Scratch memory of a context."""
        return int(self.plan.scratch_bytes)

    def get_tensor_name(self, index: int) -> str:
        """By number."""
        return str(list(self._shapes)[index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Input, output or neither."""
        modes = {self.kernel.input.name: TensorIOMode.INPUT, self.kernel.output.name: TensorIOMode.OUTPUT}
        return modes.get(name, TensorIOMode.NONE)

    def get_tensor_dtype(self, name: str) -> DataType:
        """What it is made of."""
        return DataType.FLOAT

    def get_tensor_shape(self, name: str) -> Dims:
        """-1 is an axis that is not fixed."""
        return Dims(self._shapes[name])

    def get_tensor_format(self, name: str) -> TensorFormat:
        """How it lies in memory."""
        return TensorFormat.LINEAR

    def get_tensor_location(self, name: str) -> TensorLocation:
        """Where it lies."""
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        """Smallest, fastest and largest shape."""
        shape = self._shapes[name]
        if not self.plan.profiles:
            return [Dims(shape)] * 3
        return [Dims((rows, *shape[1:])) for rows in self.plan.profiles[profile_index]]

    def create_engine_inspector(self) -> EngineInspector:
        """Describes the engine."""
        return EngineInspector(self.plan)

    def create_runtime_config(self) -> IRuntimeConfig:
        """A configuration."""
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext:
        """A context."""
        return IExecutionContext(self, runtime_config)


class EngineInspector:
    """Describes an engine."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002
        """Its layers, as the real one gives them for an engine built without details: their names."""
        nodes = onnx.load_model_from_string(self._plan.onnx).graph.node
        return json.dumps({"Layers": [node.name for node in nodes], "Bindings": []})


class IExecutionContext:
    """Runs an engine with one profile, one shape and one set of addresses at a time."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self._engine = engine
        self._memory_given = config.strategy is not ExecutionContextAllocationStrategy.USER_MANAGED
        self._profile: int | None = None
        self._rows: int | None = None
        self._addresses: dict[str, int] = {}
        self.first_run_over = False
        self._launches: list[Launch] = []
        self._names = (engine.kernel.input.name, engine.kernel.output.name)

    def set_device_memory(self, memory: int, size: int) -> None:
        """Scratch memory."""
        if memory % 256 or size < self._engine.device_memory_size_v2:
            self._refuse(f"{size} bytes of scratch memory at {memory:#x} do not do")
        else:
            self._memory_given = True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose the profile."""
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._refuse(f"there is no profile {profile_index}")
        self._profile, self._rows = profile_index, None
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """The shape of the input."""
        known = tuple(self._engine.get_tensor_shape(name))
        if self._profile is None or name != self._names[0] or shape[1:] != known[1:]:
            return self._refuse(f"shape {shape} for {name} of {known}, profile {self._profile}")
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, self._profile)
        if not smallest[0] <= shape[0] <= largest[0]:
            return self._refuse(
                f"{shape[0]} rows are outside of profile {self._profile}: {smallest[0]} to {largest[0]}"
            )
        if shape[0] != self._rows:
            self._rows, self.first_run_over = shape[0], False
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where a tensor lies."""
        if name not in self._names or not memory:
            return self._refuse(f"address {memory:#x} for {name}")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        """The tensors whose shape is not known."""
        return [] if self._rows is not None else [self._names[0]]

    def get_tensor_shape(self, name: str) -> Dims:
        """The shape in force."""
        rows = -1 if self._rows is None else self._rows
        return Dims((rows, *self._engine.get_tensor_shape(name)[1:]))

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Queue one run."""
        if not self._memory_given or self._rows is None or len(self._addresses) != len(self._names):
            return self._refuse("memory, shape or address was not set")
        if not self.first_run_over and not self._run_once():
            return False
        (source, in_shape), (target, out_shape) = (
            (self._addresses[name], tuple(self.get_tensor_shape(name))) for name in self._names
        )
        launch = Launch(self._engine.kernel, source, in_shape, target, out_shape)
        self._launches.append(launch)
        code = launch.queue(stream_handle)
        return not code or self._refuse(f"Cuda Runtime (error {code})")

    def _run_once(self) -> bool:
        """What the first run of a shape does besides: it takes memory for a moment, which a capture
        forbids."""
        code, memory = driver.cuMemAlloc(256)
        if not code:
            (code,) = driver.cuMemFree(memory)
        self.first_run_over = not code
        return self.first_run_over or self._refuse(f"Cuda Runtime ({code.name}) in the first run of a shape")

    def _refuse(self, message: str) -> bool:
        self._engine.logger.log(ILogger.Severity.ERROR, f"IExecutionContext: {message}")
        return False
