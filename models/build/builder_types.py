"""The part of TensorRT's Python API that builds, as far as sigd uses it: typed here, for the bindings come
without types.

As in `sigd.models.gpu.trt_types`: mypy holds our code to these protocols, and a contract test holds these
protocols to the real bindings of every version. Parameters carry the names that the bindings give them.
Nothing here runs.
"""

from __future__ import annotations

from typing import Any, Final, Protocol


class Network(Protocol):
    """INetworkDefinition; the parser fills it."""


class OptimizationProfile(Protocol):
    """IOptimizationProfile: shapes to build for."""

    def set_shape(
        self,
        input: str,  # noqa: A002
        min: tuple[int, ...],  # noqa: A002
        opt: tuple[int, ...],
        max: tuple[int, ...],  # noqa: A002
    ) -> None: ...


class TimingCache(Protocol):
    """ITimingCache."""

    def serialize(self) -> Any: ...


class BuilderConfig(Protocol):
    """IBuilderConfig."""

    builder_optimization_level: int
    progress_monitor: Any

    def set_flag(self, flag: Any) -> None: ...

    def clear_flag(self, flag: Any) -> None: ...

    def get_flag(self, flag: Any) -> bool: ...

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...

    def get_memory_pool_limit(self, pool: Any) -> int: ...

    def add_optimization_profile(self, profile: OptimizationProfile) -> int: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None: ...

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...


class RtxBuilderConfig(BuilderConfig, Protocol):
    """IBuilderConfig of TensorRT-RTX, which is told what to build for."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool: ...


class Builder(Protocol):
    """Builder: made from a logger."""

    def create_network(self, flags: int) -> Network | None: ...

    def create_builder_config(self) -> BuilderConfig | None: ...

    def create_optimization_profile(self) -> OptimizationProfile | None: ...

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> Any: ...


class ParserError(Protocol):
    """ParserError."""

    def node(self) -> int: ...

    def desc(self) -> str: ...


class Parser(Protocol):
    """OnnxParser: made from a network and a logger."""

    @property
    def num_errors(self) -> int: ...

    def parse(self, model: bytes) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...


class EngineInspector(Protocol):
    """EngineInspector."""

    def get_engine_information(self, format: Any) -> str: ...  # noqa: A002


class LoadedEngine(Protocol):
    """ICudaEngine."""

    def create_engine_inspector(self) -> EngineInspector | None: ...

    @property
    def device_memory_size_v2(self) -> int: ...


class PlanRuntime(Protocol):
    """Runtime: made from a logger."""

    def deserialize_cuda_engine(self, serialized_engine: Any) -> LoadedEngine | None: ...


class ProgressMonitor(Protocol):
    """IProgressMonitor: to be derived from."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool: ...

    def phase_finish(self, phase_name: str) -> None: ...


class NetworkFlags(Protocol):
    """NetworkDefinitionCreationFlag. Its numbers differ between versions."""

    STRONGLY_TYPED: Any


class BuilderFlags(Protocol):
    """BuilderFlag. Its numbers differ between versions."""

    TF32: Any


class MemoryPools(Protocol):
    """MemoryPoolType."""

    WORKSPACE: Any


class LayerFormats(Protocol):
    """LayerInformationFormat."""

    JSON: Any


class Severities(Protocol):
    """ILogger.Severity, worst first."""

    ERROR: Any


class Module(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`."""

    __version__: str

    NetworkDefinitionCreationFlag: NetworkFlags
    BuilderFlag: BuilderFlags
    MemoryPoolType: MemoryPools
    LayerInformationFormat: LayerFormats
    ILogger: Any
    IProgressMonitor: Any

    def Builder(self, logger: Any) -> Builder: ...  # noqa: N802

    def OnnxParser(self, network: Network, logger: Any) -> Parser: ...  # noqa: N802

    def Runtime(self, logger: Any) -> PlanRuntime: ...  # noqa: N802


class RtxModule(Module, Protocol):
    """The module `tensorrt_rtx`."""

    ComputeCapability: type


CLASSES: Final[dict[str, type]] = {
    "IOptimizationProfile": OptimizationProfile,
    "ITimingCache": TimingCache,
    "IBuilderConfig": BuilderConfig,
    "Builder": Builder,
    "ParserError": ParserError,
    "OnnxParser": Parser,
    "EngineInspector": EngineInspector,
    "ICudaEngine": LoadedEngine,
    "Runtime": PlanRuntime,
    "IProgressMonitor": ProgressMonitor,
}
"""What each protocol describes, by its name in the bindings; so are the enumerations below."""
RTX_CLASSES: Final[dict[str, type]] = {**CLASSES, "IBuilderConfig": RtxBuilderConfig}
ENUMERATIONS: Final[dict[str, type]] = {
    "NetworkDefinitionCreationFlag": NetworkFlags,
    "BuilderFlag": BuilderFlags,
    "MemoryPoolType": MemoryPools,
    "LayerInformationFormat": LayerFormats,
    "ILogger.Severity": Severities,
}
