"""The builder: it takes what sigd's own builder code gives it, and writes a plan of the stand-in."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import onnx
from cuda.bindings import driver

from tensorrt.logger import ILogger
from tensorrt.plan import Plan, write_plan
from tensorrt.run import VERSION, IHostMemory

_SCRATCH_BYTES = 1 << 20


class NetworkDefinitionCreationFlag(IntEnum):
    """As in TensorRT 11."""

    STRONGLY_TYPED = 0


class BuilderFlag(IntEnum):
    """Those that sigd sets."""

    TF32 = 6


class MemoryPoolType(IntEnum):
    """Those that sigd limits."""

    WORKSPACE = 0


class IProgressMonitor:
    """To be derived from."""

    def __init__(self) -> None:
        self._constructed = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins."""
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step is done; False ends the build."""
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        """A phase is over."""
        raise NotImplementedError


class INetworkDefinition:
    """A network, filled by the parser."""

    def __init__(self) -> None:
        self.onnx = b""


class ParserError:
    """Why a node was refused."""

    def __init__(self, node: int, description: str) -> None:
        self._node = node
        self._description = description

    def node(self) -> int:
        """Its number."""
        return self._node

    def desc(self) -> str:
        """The reason."""
        return self._description


class OnnxParser:
    """Reads a model into a network."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        """How many nodes were refused."""
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        """One of them."""
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        """Read a model; False where a node is not one of ONNX's own."""
        nodes = onnx.load_model_from_string(model).graph.node
        self._errors = [
            ParserError(number, f"no plugin is called {node.op_type}")
            for number, node in enumerate(nodes)
            if node.domain not in ("", "ai.onnx")
        ]
        self._network.onnx = bytes(model)
        return not self._errors


class IOptimizationProfile:
    """Shapes to prepare for."""

    def __init__(self) -> None:
        self.rows = (0, 0, 0)

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        """Smallest, fastest and largest shape of an input."""
        self.rows = (min[0], opt[0], max[0])


class ITimingCache:
    """Timings of kernels, of which there are none here."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> IHostMemory:
        """As bytes."""
        return IHostMemory(self.content or b"timings")


class IBuilderConfig:
    """How to build."""

    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.progress_monitor: IProgressMonitor | None = None
        self.profiles: list[IOptimizationProfile] = []
        self._flags = {BuilderFlag.TF32}
        self._limits = {MemoryPoolType.WORKSPACE: 1 << 30}
        self._cache: ITimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        """Switch on."""
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        """Switch off."""
        self._flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        """Whether it is on."""
        return flag in self._flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        """The most memory."""
        self._limits[pool] = pool_size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        """The most memory."""
        return self._limits[pool]

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        """Its number; -1 where it is not one."""
        smallest, fastest, largest = profile.rows
        if not 1 <= smallest <= fastest <= largest:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        """A cache."""
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        """Use it."""
        self._cache = cache
        return True


class Builder:
    """Builds plans."""

    version = VERSION

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition | None:
        """A network; it must be strongly typed."""
        if flags != 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            self._logger.log(ILogger.Severity.ERROR, f"createNetwork: flags {flags:#x} are not known")
            return None
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        """A configuration."""
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        """A profile."""
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        """The plan; None where it was cancelled or the batch is free and there is no profile."""
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            go_on = True
            for step in range(2):
                go_on = go_on and monitor.step_complete("Building engine", step)
            monitor.phase_finish("Building engine")
            if not go_on:
                return None
        model = onnx.load_model_from_string(network.onnx)
        fixed = model.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
        if not fixed and not config.profiles:
            self._logger.log(
                ILogger.Severity.ERROR, "the network has dynamic inputs, but no optimization profile"
            )
            return None
        plan = Plan(
            onnx=network.onnx,
            version=self.version,
            compute_capability=self.compute_capability(config),
            profiles=tuple(profile.rows for profile in config.profiles),
            weights_bytes=max(len(network.onnx), 256),
            scratch_bytes=_SCRATCH_BYTES,
        )
        return IHostMemory(write_plan(plan))

    def compute_capability(self, config: IBuilderConfig) -> str:
        """Of the GPU to build for: the one that is here."""
        driver.cuInit(0)
        attributes = driver.CUdevice_attribute
        _, device = driver.cuDeviceGet(0)
        _, major = driver.cuDeviceGetAttribute(
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device
        )
        _, minor = driver.cuDeviceGetAttribute(
            attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device
        )
        return f"{major}.{minor}"
