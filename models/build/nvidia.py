"""The TensorRT and TensorRT-RTX builders. One API; what differs is noted where it does.

Calls report failure as None or False and only log the reason, so every one is checked and the log is kept.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from sigd.models.build.progress import BuildProgress, progress_monitor
from sigd.models.errors import BackendFailed, BackendUnavailable, ModelRefused
from sigd.models.manifest import PrecisionName, Profile, RuntimeName
from sigd.models.spec import ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto

    from sigd.models.build.builder_types import (
        Builder,
        BuilderConfig,
        Module,
        Network,
        ParserError,
        RtxBuilderConfig,
        RtxModule,
        TimingCache,
    )

Made = TypeVar("Made")

_TF32_CAPABILITY: Final = (8, 0)
"""The first with tensor cores that take TF32 (Ampere)."""
_LOG_LINES: Final = 32
_WAKE_UP_S: Final = 0.1
_NO_DEVICE: Final = ("cudaError 35", "CUDA initialization failure", "no CUDA-capable device")
_NO_KERNEL: Final = re.compile(
    r"Cannot compile operation '(?P<node>[^']*)' for (?P<gpu>[^:]*): (?P<why>[^.\]]*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What the builder is to do.

    Attributes:
        runtime: "tensorrt" or "tensorrt-rtx".
        compute_capability: the GPU that it is for; TensorRT itself takes the one that is here.
        profiles: the batches to prepare for.
        precision: what the graph was converted to; fp32 and tf32 differ in a flag only.
        optimization_level, workspace_bytes_max: None takes the builder's default.
        timing_cache: serialised; empty for a new one; None for none.
    """

    runtime: RuntimeName
    compute_capability: str
    profiles: tuple[Profile, ...]
    precision: PrecisionName
    optimization_level: int | None = None
    workspace_bytes_max: int | None = None
    timing_cache: bytes | None = None


@dataclass(frozen=True, slots=True)
class BuiltPlan:
    """What came out.

    Attributes:
        content: the plan.
        flags: the builder's settings in force.
        timing_cache: afterwards; None where there was none.
        device_memory_bytes: what one execution needs beside the weights; None where no GPU here could load
            the plan.
    """

    content: bytes
    flags: dict[str, bool | int | str]
    timing_cache: bytes | None = None
    device_memory_bytes: int | None = None


def build_plan(
    trt: Module, model: ModelProto, spec: ModelSpec, request: PlanRequest, progress: BuildProgress
) -> BuiltPlan:
    """Build the plan of a model.

    The builder runs on a thread of its own, so that the caller's thread stays free: a KeyboardInterrupt (or
    any other exception) raised there cancels the build at the builder's next step and is raised again.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        model: the graph in its final precision. Every node has a name.
        spec: of the model.
        request: the rest.
        progress: told of every phase.

    Raises:
        ModelRefused: an operator or a precision is not supported; with the node.
        BackendUnavailable: the builder needs a GPU or driver that is not here.
        BackendFailed: the builder failed; with its last words.
    """
    _check_precision(spec, request)
    cancelled = threading.Event()
    with ThreadPoolExecutor(1, "sigd-builder") as executor:
        building = executor.submit(lambda: _Build(trt, model, spec, request).run(progress, cancelled))
        try:
            # Waking up now and then hears a signal that the system gave to another thread, too.
            while not wait((building,), timeout=_WAKE_UP_S).done:
                pass
            return building.result()
        except BaseException:
            cancelled.set()
            raise


def _check_precision(spec: ModelSpec, request: PlanRequest) -> None:
    """Whether the GPU has that arithmetic at all. Raises ModelRefused."""
    capability = tuple(map(int, request.compute_capability.split(".")))
    if request.precision == "tf32" and capability < _TF32_CAPABILITY:
        raise ModelRefused(
            f"{spec.path}: tf32 needs compute capability 8.0 or newer, this build is for"
            f" {request.compute_capability}: give"
            " --precision fp16"
        )


class _Build:
    """One build; the objects of the builder live as long as it does."""

    def __init__(self, trt: Module, model: ModelProto, spec: ModelSpec, request: PlanRequest) -> None:
        self._trt = trt
        self._model = model
        self._spec = spec
        self._request = request
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._logger = recording_logger(trt, self._log)
        self._tool = f"{request.runtime} {trt.__version__}"

    def run(self, progress: BuildProgress, cancelled: threading.Event) -> BuiltPlan:
        trt = self._trt
        builder = trt.Builder(self._logger)
        # TensorRT 10 numbers this flag otherwise than 11 and RTX do, so its number is never written down. 10
        # knows weak typing too; strong typing makes one graph mean the same everywhere.
        network = self._made(
            builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        )
        self._parse(network)
        config = self._made(builder.create_builder_config())
        timing_cache = self._configure(builder, config)
        config.progress_monitor = progress_monitor(trt, progress, cancelled)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self._failure()
        content = bytes(plan)
        cache_content = None if timing_cache is None else bytes(self._made(timing_cache.serialize()))
        return BuiltPlan(content, self._flags(config), cache_content, self._device_memory(content))

    def _device_memory(self, plan: bytes) -> int | None:
        if self._request.runtime == "tensorrt-rtx":
            return None
        runtime = self._trt.Runtime(self._logger)
        return int(self._made(runtime.deserialize_cuda_engine(plan)).device_memory_size_v2)

    def _parse(self, network: Network) -> None:
        parser = self._trt.OnnxParser(network, self._logger)
        if parser.parse(self._model.SerializeToString()):
            return
        refused = [self._refused_node(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ModelRefused(
            f"{self._spec.path}: {self._tool} does not support"
            f" {'; '.join(refused) or 'it: ' + self._last_words()}: export the"
            " model without it, or serve it with ONNX Runtime (--runtime onnxruntime)"
        )

    def _refused_node(self, error: ParserError) -> str:
        nodes = self._model.graph.node
        if not 0 <= error.node() < len(nodes):
            return str(error.desc())
        node = nodes[error.node()]
        text = f"operator {node.op_type} (node {node.name!r}, which gives {', '.join(node.output)})"
        # A check inside the parser that fails is described by the value it had.
        return text if error.desc() in ("", "false") else f"{text}: {error.desc()}"

    def _configure(self, builder: Builder, config: BuilderConfig) -> TimingCache | None:
        """Set everything up; the timing cache, or None."""
        trt, request = self._trt, self._request
        # Anything else is set in the graph. On by default, and then float32 is not what it says.
        (config.set_flag if request.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
        if request.optimization_level is not None:
            config.builder_optimization_level = request.optimization_level
        if request.workspace_bytes_max is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes_max)
        if request.runtime == "tensorrt-rtx":
            rtx = cast("RtxBuilderConfig", config)
            rtx.num_compute_capabilities = 1
            self._checked(rtx.set_compute_capability(self._capability(), 0), "set_compute_capability")
        if self._spec.batch_rows is None:
            self._add_profiles(builder, config)
        if request.timing_cache is None:
            return None
        cache = self._made(config.create_timing_cache(request.timing_cache))
        if not config.set_timing_cache(cache, False):
            raise ModelRefused(
                f"the timing cache was made on another GPU or by another version than {self._tool}"
                f" ({self._last_words()}): name"
                " another file with --timing-cache, or remove it"
            )
        return cache

    def _add_profiles(self, builder: Builder, config: BuilderConfig) -> None:
        dims = self._spec.input_dims
        for rows in self._request.profiles:
            profile = self._made(builder.create_optimization_profile())
            profile.set_shape(
                self._spec.input_name, (rows.rows_min, *dims), (rows.rows_opt, *dims), (rows.rows_max, *dims)
            )
            self._checked(config.add_optimization_profile(profile) >= 0, "add_optimization_profile")

    def _capability(self) -> Any:
        wanted = self._request.compute_capability
        known = vars(cast("RtxModule", self._trt).ComputeCapability)
        capability = known.get("SM" + wanted.replace(".", ""))
        if capability is None:
            names = sorted((name[2:] for name in known if re.fullmatch(r"SM\d+", name)), key=int)
            raise ModelRefused(
                f"{self._spec.path}: {self._tool} does not build for compute capability {wanted}, expected"
                " one of"
                f" {', '.join(f'{name[:-1]}.{name[-1]}' for name in names)}: build with TensorRT on the GPU"
                " itself"
            )
        return capability

    def _flags(self, config: BuilderConfig) -> dict[str, bool | int | str]:
        trt = self._trt
        return {
            "strongly_typed": True,
            "tf32": bool(config.get_flag(trt.BuilderFlag.TF32)),
            "optimization_level": int(config.builder_optimization_level),
            "workspace_bytes_max": int(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)),
        }

    def _failure(self) -> Exception:
        """Why the builder gave nothing, from what it logged."""
        words, request = self._last_words(), self._request
        no_kernel = _NO_KERNEL.search(words)
        if no_kernel is not None:
            return ModelRefused(
                f"{self._spec.path}: node {no_kernel['node']!r} cannot run in {request.precision} on compute"
                " capability"
                f" {request.compute_capability} ({no_kernel['gpu']}: {no_kernel['why']}): give another"
                " --precision (fp16 runs"
                " on all that TensorRT builds for)"
            )
        if any(text in words for text in _NO_DEVICE):
            return BackendUnavailable(
                f"{self._tool} needs a GPU and its driver here: {words}: run sigd doctor, or build for a GPU"
                " elsewhere with"
                " --runtime tensorrt-rtx --compute-capability 8.6"
            )
        return BackendFailed(f"{self._spec.path}: {self._tool} could not build it: {words}")

    def _made(self, made: Made | None) -> Made:
        if made is None:
            raise self._failure()
        return made

    def _checked(self, done: bool, call: str) -> None:
        if not done:
            raise BackendFailed(f"{self._spec.path}: {self._tool}: {call} failed: {self._last_words()}")

    def _last_words(self) -> str:
        return "; ".join(self._log) or "it logged nothing"


def recording_logger(trt: Module, log: deque[str]) -> Any:
    """A logger that keeps errors in `log` and prints nothing."""

    interface: Any = trt.ILogger
    worst_kept = int(interface.Severity.ERROR)

    class Recorder(interface):  # type: ignore[misc]
        def __init__(self) -> None:
            interface.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= worst_kept:
                log.append(msg)

    return Recorder()
