"""TensorRT 10, TensorRT 11 and TensorRT-RTX behind one small surface: what differs between them is here, and
only here.

    differs                           TensorRT 10, 11      TensorRT-RTX 1
    module                            tensorrt             tensorrt_rtx
    kernels for a shape               in the plan          compiled when a context first meets it
    may this context be captured?     capturing tells      has to be asked first

Names that only some versions have (`device_memory_size`, `create_execution_context_without_device_memory`)
are not used at all. Many calls report failure as None or False and only log the reason, so each of them is
checked and its error carries what was logged last.
"""

from __future__ import annotations

import importlib
import threading
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from sigd.models.engine import INSTALL
from sigd.models.errors import BackendUnavailable

if TYPE_CHECKING:
    from sigd.models.gpu.trt_types import (
        Engine,
        ExecutionContext,
        Module,
        RtxExecutionContext,
        RtxModule,
        RtxRuntimeConfig,
        RuntimeConfig,
    )
    from sigd.models.manifest import RuntimeName

Made = TypeVar("Made")

_MODULES: Final[dict[RuntimeName, str]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_WORDS_MAX: Final = 16
_OUT_OF_MEMORY: Final = ("out of memory", "outofmemory", "out_of_memory", "could not be allocated")
SCRATCH_BYTES_MIN: Final = 256
"""Contexts get at least this much scratch memory, and aligned to it, also where the engine wants none."""


class TrtError(Exception):
    """A call of TensorRT failed; the message ends with what it logged.

    Attributes:
        out_of_memory: the log speaks of memory that could not be had.
    """

    def __init__(self, call: str, words: str) -> None:
        super().__init__(f"{call} failed: {words or 'and it logged nothing'}")
        self.out_of_memory = any(sign in words.lower() for sign in _OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class EngineTensor:
    """An input or output of an engine.

    Attributes:
        dims: every axis, the batch first; -1 where it is free.
        plain: float32 in C order on the GPU.
    """

    name: str
    dims: tuple[int, ...]
    plain: bool


@dataclass(frozen=True, slots=True)
class RowRange:
    """What one optimisation profile takes, in rows, and where it is fastest."""

    rows_min: int
    rows_opt: int
    rows_max: int


class Words:
    """What TensorRT logged at warning or worse, the latest `_WORDS_MAX` of it. Written by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._words: deque[str] = deque(maxlen=_WORDS_MAX)

    def add(self, message: str) -> None:
        """Keep a message."""
        with self._lock:
            self._words.append(" ".join(message.split()))

    def clear(self) -> None:
        """Forget what was said; call it before a call whose words matter."""
        with self._lock:
            self._words.clear()

    def last(self) -> str:
        """All that is kept, the latest last."""
        with self._lock:
            return "; ".join(self._words)


@cache
def load(runtime: RuntimeName) -> TensorRt:
    """TensorRT or TensorRT-RTX; the same object every time, for TensorRT takes one logger in a process.

    Raises:
        BackendUnavailable: it cannot be imported; with the way to get it.
    """
    try:
        module = importlib.import_module(_MODULES[runtime])
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"{runtime} cannot be imported ({error}): {INSTALL[runtime]}") from error
    return TensorRt(runtime, cast("Module", module))


class TensorRt:
    """One of them, loaded.

    Attributes:
        runtime: "tensorrt" or "tensorrt-rtx".
        version: for example "10.13.3.9".
    """

    def __init__(self, runtime: RuntimeName, module: Module) -> None:
        self.runtime = runtime
        self.version = module.__version__
        self._module = module
        self._rtx = cast("RtxModule", module) if runtime == "tensorrt-rtx" else None
        self._words = Words()
        self._logger = _recording_logger(module, self._words)

    def deserialize(self, plan: bytes) -> Engine:
        """The engine in a plan, with its weights on the GPU of the calling thread's context. Raises
        TrtError."""
        self._words.clear()
        runtime = self._made("Runtime", self._module.Runtime(self._logger))
        return self._made("deserialize_cuda_engine", runtime.deserialize_cuda_engine(plan))

    def tensors(self, engine: Engine) -> tuple[list[EngineTensor], list[EngineTensor]]:
        """Inputs and outputs of an engine."""
        modes = self._module.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [self._tensor(engine, name) for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        outputs = [
            self._tensor(engine, name) for name in names if engine.get_tensor_mode(name) == modes.OUTPUT
        ]
        return inputs, outputs

    def row_ranges(self, engine: Engine, tensor: EngineTensor) -> tuple[RowRange, ...]:
        """What each optimisation profile takes, in the order of their numbers."""
        if tensor.dims[0] >= 0:
            return (RowRange(*(tensor.dims[0],) * 3),)
        shapes = [
            engine.get_tensor_profile_shape(tensor.name, profile)
            for profile in range(engine.num_optimization_profiles)
        ]
        return tuple(RowRange(*(int(shape[0]) for shape in ranges)) for ranges in shapes)

    def scratch_bytes(self, engine: Engine) -> int:
        """Scratch memory that one execution needs, whatever its profile."""
        return max(int(engine.device_memory_size_v2), SCRATCH_BYTES_MIN)

    def context(
        self, engine: Engine, scratch: tuple[int, int], stream: int, profile: int
    ) -> ExecutionContext:
        """An execution context on the given scratch memory, with one of the engine's profiles.

        Contexts may share scratch memory as long as they never run at the same time.

        Args:
            scratch: address and bytes, aligned to `SCRATCH_BYTES_MIN`.
            stream: what the choice of the profile is ordered by.

        Raises:
            TrtError: it cannot be made.
        """
        self._words.clear()
        config = self._made("create_runtime_config", engine.create_runtime_config())
        self._configure(config)
        context = self._made("create_execution_context", engine.create_execution_context(config))
        context.set_device_memory(*scratch)
        done = context.set_optimization_profile_async(profile, stream)
        self._done("set_optimization_profile_async", done)
        return context

    def bind(
        self, context: ExecutionContext, tensor: EngineTensor, shape: tuple[int, ...], address: int
    ) -> None:
        """Give an input its shape and address. Raises TrtError."""
        self._words.clear()
        self._done(f"set_input_shape {shape}", context.set_input_shape(tensor.name, shape))
        self._done("set_tensor_address", context.set_tensor_address(tensor.name, address))

    def bind_output(
        self, context: ExecutionContext, tensor: EngineTensor, shape: tuple[int, ...], address: int
    ) -> None:
        """Give an output its address, once every input is bound. Raises TrtError, also where its shape is
        another."""
        self._words.clear()
        missing = list(context.infer_shapes())
        if missing:
            raise TrtError(f"infer_shapes ({', '.join(missing)} not known)", self._words.last())
        found = _shape(context.get_tensor_shape(tensor.name))
        if found != shape:
            raise TrtError(
                f"output {tensor.name!r} has the shape {found}, expected {shape}: the check",
                self._words.last(),
            )
        self._done("set_tensor_address", context.set_tensor_address(tensor.name, address))

    def enqueue(self, context: ExecutionContext, stream: int) -> None:
        """Run the context on a stream. Raises TrtError."""
        self._words.clear()
        self._done("execute_async_v3", context.execute_async_v3(stream))

    def check_capturable(self, context: ExecutionContext, stream: int) -> None:
        """Whether `enqueue` may be captured into a graph, where that has to be asked. Raises TrtError."""
        if self._rtx is None:
            return
        self._words.clear()
        self._done("is_stream_capturable", cast("RtxExecutionContext", context).is_stream_capturable(stream))

    def _configure(self, config: RuntimeConfig) -> None:
        config.set_execution_context_allocation_strategy(
            self._module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._rtx is None:
            return
        rtx = cast("RtxRuntimeConfig", config)
        # The graphs are ours. And a kernel that is compiled in the background would be swapped in under a
        # request.
        rtx.cuda_graph_strategy = self._rtx.CudaGraphStrategy.DISABLED
        rtx.dynamic_shapes_kernel_specialization_strategy = (
            self._rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        )

    def _tensor(self, engine: Engine, name: str) -> EngineTensor:
        module = self._module
        plain = (
            engine.get_tensor_dtype(name) == module.DataType.FLOAT
            and engine.get_tensor_format(name) == module.TensorFormat.LINEAR
            and engine.get_tensor_location(name) == module.TensorLocation.DEVICE
        )
        return EngineTensor(name, _shape(engine.get_tensor_shape(name)), plain)

    def _made(self, call: str, made: Made | None) -> Made:
        if made is None:
            raise TrtError(call, self._words.last())
        return made

    def _done(self, call: str, done: bool) -> None:
        if not done:
            raise TrtError(call, self._words.last())


def _shape(dims: Any) -> tuple[int, ...]:
    return tuple(int(dims[axis]) for axis in range(len(dims)))


def _recording_logger(module: Module, words: Words) -> Any:
    """A logger that keeps what is said at warning or worse, and prints nothing."""
    worst_kept = int(module.ILogger.Severity.WARNING)
    interface: Any = module.ILogger

    class Recorder(interface):  # type: ignore[misc]
        def __init__(self) -> None:
            interface.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= worst_kept:
                words.add(msg)

    return Recorder()
