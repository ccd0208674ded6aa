"""The stand-in as TensorRT-RTX: what it has besides, and the one way in which it is stricter. Its kernels are
compiled when a context first meets a shape; asked for "lazily" they come later, and until then a context
cannot be captured."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import tensorrt
from tensorrt import (
    BuilderFlag,
    DataType,
    Dims,
    EngineInspector,
    ExecutionContextAllocationStrategy,
    IHostMemory,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITimingCache,
    LayerInformationFormat,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    OnnxParser,
    ParserError,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)

__version__ = "1.7.1.116"

__all__ = [
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "CudaGraphStrategy",
    "DataType",
    "Dims",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "IRuntimeConfig",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TensorFormat",
    "TensorIOMode",
    "TensorLocation",
]


class ComputeCapability(IntEnum):
    """What can be built for."""

    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120


class CudaGraphStrategy(IntEnum):
    """Who captures graphs."""

    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    """When kernels for a shape are compiled."""

    LAZY = 0
    EAGER = 1
    NONE = 2


class IRuntimeConfig(tensorrt.IRuntimeConfig):  # type: ignore[misc]
    """How an execution context is made."""

    def __init__(self) -> None:
        super().__init__()
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY


class IExecutionContext(tensorrt.IExecutionContext):  # type: ignore[misc]
    """Runs an engine."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        super().__init__(engine, config)
        self._lazy = (
            config.dynamic_shapes_kernel_specialization_strategy
            is DynamicShapesKernelSpecializationStrategy.LAZY
        )

    def is_stream_capturable(self, stream: int) -> bool:
        """Whether a run may be captured now."""
        return self.first_run_over and not self._lazy


class ICudaEngine(tensorrt.ICudaEngine):  # type: ignore[misc]
    """An engine."""

    def create_runtime_config(self) -> IRuntimeConfig:
        """A configuration."""
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext:
        """A context."""
        return IExecutionContext(self, runtime_config)


class Runtime(tensorrt.Runtime):  # type: ignore[misc]
    """Loads engines."""

    version = __version__

    def make_engine(self, plan: Any, weights: int) -> ICudaEngine:
        """The engine of a plan whose weights are on the device."""
        return ICudaEngine(plan, weights, self.logger)


class IBuilderConfig(tensorrt.IBuilderConfig):  # type: ignore[misc]
    """How to build, and for what."""

    def __init__(self) -> None:
        super().__init__()
        self.num_compute_capabilities = 0
        self.capability = ComputeCapability.SM75

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        """The GPU to build for."""
        self.capability = compute_capability
        return index < self.num_compute_capabilities


class Builder(tensorrt.Builder):  # type: ignore[misc]
    """Builds plans, without a GPU."""

    version = __version__

    def create_builder_config(self) -> IBuilderConfig:
        """A configuration."""
        return IBuilderConfig()

    def compute_capability(self, config: IBuilderConfig) -> str:
        """Of the GPU to build for: the one that was asked for."""
        return f"{config.capability // 10}.{config.capability % 10}"
