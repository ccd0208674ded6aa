"""A stand-in for TensorRT-RTX's builder, for machines without it: it keeps the API's rules and builds
nothing.

Its plan is a JSON of what it was told, so that a test can read back what reached the builder. A graph with a
Det is refused as the real parser refuses it; what else goes wrong is set in `trouble`. tests/rtx has the real
one.
"""

from __future__ import annotations

import json
import os
import time
from enum import IntEnum
from typing import Any

import onnx

__version__ = "1.7.1.116"

trouble: dict[str, Any] = {}
"""What shall go wrong: "words": what the builder logs before it fails; "none": calls that give None; "cache":
a timing cache that is not this machine's."""
gpu_is_here = False
"""Whether plans can be loaded."""
STEPS = 50


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 0


class BuilderFlag(IntEnum):
    TF32 = 6


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class LayerInformationFormat(IntEnum):
    JSON = 1


class ComputeCapability(IntEnum):
    NONE = 0
    SM75 = 75
    SM86 = 86
    SM120 = 120


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class Network:
    def __init__(self) -> None:
        self.model: onnx.ModelProto | None = None


class ParserError:
    def __init__(self, node: int) -> None:
        self._node = node

    def node(self) -> int:
        return self._node

    def desc(self) -> str:
        return "false"


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes) -> bool:
        self._network.model = onnx.load_model_from_string(model)
        nodes = self._network.model.graph.node
        self._errors = [ParserError(number) for number, node in enumerate(nodes) if node.op_type == "Det"]
        return not self._errors


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        self.shapes[name] = [low, best, high]


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"timed "


class LoadedEngine:
    device_memory_size_v2 = 4096


class Config:
    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.num_compute_capabilities = 0
        self.progress_monitor: Any = None
        self.profiles: list[Profile] = []
        self.capabilities: list[int] = []
        self._flags = {BuilderFlag.TF32}
        self._workspace = 1 << 36

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._workspace = pool_size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self._workspace

    def add_optimization_profile(self, profile: Profile) -> int:
        if "add_optimization_profile" in trouble.get("none", ()):
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        return cache.content != trouble.get("cache")

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> bool:
        self.capabilities.append(int(capability))
        return index < self.num_compute_capabilities


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> Network | None:
        # The real one has no other flag, and gives None for any other bit.
        strongly_typed = 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Network() if flags == strongly_typed else None

    def create_builder_config(self) -> Config | None:
        return None if "create_builder_config" in trouble.get("none", ()) else Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        if not self._run_steps(config.progress_monitor):
            self._logger.log(ILogger.Severity.ERROR, "Error Code 7: BuildCanceled")
            return None
        if "words" in trouble:
            self._logger.log(ILogger.Severity.WARNING, "only a warning")
            self._logger.log(ILogger.Severity.ERROR, trouble["words"])
            return None
        assert network.model is not None
        told = {
            "operators": [node.op_type for node in network.model.graph.node],
            "names": [node.name for node in network.model.graph.node],
            "capabilities": config.capabilities,
            "profiles": [profile.shapes for profile in config.profiles],
            "tf32": config.get_flag(BuilderFlag.TF32),
        }
        return json.dumps(told).encode()

    def _run_steps(self, monitor: Any) -> bool:
        step_s = float(os.environ.get("STANDIN_STEP_S", "0"))
        monitor.phase_start("Building engine", None, STEPS)
        try:
            for step in range(STEPS):
                time.sleep(step_s)
                if not monitor.step_complete("Building engine", step):
                    return False
        finally:
            monitor.phase_finish("Building engine")
        return True


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> LoadedEngine | None:
        if gpu_is_here:
            return LoadedEngine()
        self._logger.log(ILogger.Severity.ERROR, "Error Code 1: Cuda Runtime (cudaError 35)")
        return None
