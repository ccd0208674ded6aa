"""A stand-in for TensorRT at its Python API, for machines without a GPU.

It has the names, signatures and manners of the real one as far as sigd uses them (a test compares them):
calls answer None or False and log the reason; a context must be given its memory, profile, shapes and
addresses; its first run allocates, so that it cannot be captured before. Its "kernel" is ONNX Runtime, run as
a host function on the stream of the simulated driver, on device memory; on a real driver it runs models of
dense layers, by CUDA kernels.

A plan made here is the ONNX model with a header, and is read only here.
"""

from __future__ import annotations

from tensorrt.build import (
    Builder,
    BuilderFlag,
    IBuilderConfig,
    INetworkDefinition,
    IOptimizationProfile,
    IProgressMonitor,
    ITimingCache,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    OnnxParser,
    ParserError,
)
from tensorrt.logger import ILogger
from tensorrt.run import (
    VERSION,
    DataType,
    Dims,
    EngineInspector,
    ExecutionContextAllocationStrategy,
    ICudaEngine,
    IExecutionContext,
    IHostMemory,
    IRuntimeConfig,
    LayerInformationFormat,
    Runtime,
    TensorFormat,
    TensorIOMode,
    TensorLocation,
)

__version__ = VERSION

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
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
