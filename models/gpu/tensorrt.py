"""The TensorRT backend: one graph launch and one event for each batch, on arrays that the daemon writes and
reads itself.

Nothing is allocated and nothing is looked up after `open()`. A batch is started by `submit()` and asked for
by `ready()`, which never waits. What a GPU cannot recover from is not retried: a dead context, or a batch
that does not come back within `device_timeout_ms`, is a fatal `BackendFailed`, and from then on every call
says so again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic_ns
from traceback import clear_frames
from typing import Any, Final

import numpy as np

from sigd.models.backend import Float32Array
from sigd.models.denormals import flush_denormals
from sigd.models.engine import ENGINE_SUFFIX, Environment, check_engine, read_engine, read_manifest
from sigd.models.errors import BackendClosed, BackendFailed, BackendUnavailable, ModelError, ModelRefused
from sigd.models.gpu.cuda import (
    INVALID_CONTEXT,
    LAUNCH_OUT_OF_RESOURCES,
    OUT_OF_MEMORY,
    CudaError,
    Gpu,
    gpu_facts,
)
from sigd.models.gpu.memory import who_holds
from sigd.models.gpu.options import DEFAULT_GPU_OPTIONS, GpuOptions
from sigd.models.gpu.trt_api import TensorRt, TrtError, load
from sigd.models.gpu.trt_device import PreparedEngine
from sigd.models.spec import ModelSpec

log = logging.getLogger(__name__)

_ONE: Final = np.float32(1.0)
_START_PATIENCE: Final = 10
"""How much longer than any later batch the first runs may take, which load what they need."""
_CLOSE_TIMEOUT_MS: Final = 1000


def tensorrt_backend(
    path: Path, batch_rows_max: int, name: str | None = None, options: GpuOptions = DEFAULT_GPU_OPTIONS
) -> TensorRtBackend:
    """The backend of an engine file, not opened yet.

    Args:
        path: the engine; its manifest lies beside it.
        batch_rows_max: the largest batch, in rows. An engine of a fixed batch is opened with that one
            instead.
        name: what clients call the model; None takes the file's name without its ending.

    Raises:
        ModelRefused: the engine does not fit this GPU, this TensorRT or this use; with the command that
        builds it again.
        BackendUnavailable: TensorRT, PyCUDA, the driver or the GPU is missing; with the way to get it.
    """
    if path.suffix != ENGINE_SUFFIX:
        gpu_facts(options.gpu)
        raise ModelRefused(
            f"{path}: TensorRT serves engines, expected a file ending in {ENGINE_SUFFIX}: build one, sigd"
            " build-engine"
            f" {path} --runtime tensorrt"
        )
    runtime = read_manifest(path).runtime
    if runtime == "onnxruntime":
        raise ModelRefused(
            f"{path}: built for onnxruntime, expected an engine of TensorRT: serve it with --backend"
            " onnxruntime"
        )
    trt = load(runtime)
    spec = check_engine(
        path, environment=_environment(trt, options.gpu), batch_rows_max=batch_rows_max, name=name
    )
    return TensorRtBackend(spec, trt, batch_rows_max, options)


def _environment(trt: TensorRt, index: int, memory_free_bytes: int | None = None) -> Environment:
    facts = gpu_facts(index)
    return Environment({trt.runtime: trt.version}, facts.compute_capability, facts.name, memory_free_bytes)


class TensorRtBackend:
    """An engine on TensorRT or TensorRT-RTX; see `Backend` for the contract.

    Args:
        spec: of the engine; `path` is the plan, `sha256` its digest.
        trt: the runtime that built it.
        batch_rows_max: the largest batch, in rows. An engine of a fixed batch is opened with that one
            instead.
    """

    name = "tensorrt"
    synchronous = False
    inputs: Float32Array
    outputs: Float32Array

    # What a batch needs, at hand: for each number of rows the call that flushes them and the graph that runs
    # them.
    _batches: dict[int, tuple[Callable[[], object], Any]]
    _warm_graph: Any
    _launch: Any
    _handle: Any
    _stream: Any
    _record: Any
    _query: Any
    _pycuda_error: type[Exception]
    _under_way: bool
    _deadline_ns: int
    _ran: bool
    _ran_ns: int

    def __init__(
        self,
        spec: ModelSpec,
        trt: TensorRt,
        batch_rows_max: int = 64,
        options: GpuOptions = DEFAULT_GPU_OPTIONS,
    ) -> None:
        self.spec = spec
        self.batch_rows_max = batch_rows_max if spec.batch_rows is None else spec.batch_rows
        self._trt = trt
        self._options = options
        self._timeout_ns = self._options.device_timeout_ms * 1_000_000
        self._keep_warm_ns = self._options.keep_warm_us * 1000
        self._opened: _Opened | None = None
        self._failure: BackendFailed | None = None
        self._forget()

    def open(self) -> None:
        """Load the engine, capture a graph for every bucket and run each twice. Raises as `Backend.open`
        says, and BackendFailed with `fatal` where the GPU died or hung over it."""
        plan = read_engine(self.spec)
        flush_denormals()
        options = self._options
        gpu = Gpu.acquire(options.gpu)
        prepared = PreparedEngine(
            gpu,
            self._trt,
            self.spec,
            self.batch_rows_max,
            mapped=options.mapped_io,
            timeout_ms=_START_PATIENCE * options.device_timeout_ms,
        )
        opened = _Opened(gpu, prepared)
        try:
            self._check_memory(gpu)
            gpu.run(partial(prepared.open, plan, keep_warm=options.keep_warm_us > 0))
            gpu.make_current()
        except (CudaError, TrtError) as error:
            raise self._not_opened(opened, error) from error
        except BaseException as error:
            opened.close(error)
            raise
        self._opened = opened
        self._remember(opened)

    def take_over(self) -> None:
        """Let the calling thread run batches of an engine that another one has opened. Raises as
        `BoundToThread` says."""
        assert self._opened is not None
        flush_denormals()
        try:
            self._opened.gpu.make_current()
        except CudaError as error:
            raise self._device_failed(str(error)) from error

    def submit(self, rows: int) -> bool:
        """Launch the graph of the bucket that holds `rows` rows; False. Raises as `Backend.submit` says."""
        batch = self._batches.get(rows)
        if batch is None:
            raise self._refusal(rows)
        flush, graph = batch
        # The GPU takes denormals for what they are; multiplied by one on this thread they become zeros.
        flush()
        code = self._launch(graph, self._handle)[0]
        if code:
            self._launch_again(int(code), graph, rows)
        try:
            self._record(self._stream)
        except self._pycuda_error as error:
            raise self._device_failed(f"the event behind a batch of {rows} rows: {error}") from error
        self._deadline_ns = 0
        self._under_way = True
        return False

    def ready(self) -> bool:
        """Whether the event behind the batch has come. Raises as `Backend.ready` says."""
        if not self._under_way:
            if self._opened is None or self._failure is not None:
                raise self._refusal(1)
            return True
        try:
            finished = self._query()
        except self._pycuda_error as error:
            raise self._device_failed(str(error)) from error
        if finished:
            self._under_way = False
            self._ran = True
            return True
        now_ns = monotonic_ns()
        if not self._deadline_ns:
            self._deadline_ns = now_ns + self._timeout_ns
        elif now_ns > self._deadline_ns:
            raise self._device_failed(f"a batch did not finish within {self._options.device_timeout_ms} ms")
        return False

    def keep_warm(self) -> None:
        """For a caller with nothing to do: run an empty batch where none has run for `keep_warm_us`. Never
        waits.

        Raises:
            BackendFailed: the GPU failed.
        """
        if self._warm_graph is None or self._under_way:
            return
        now_ns = monotonic_ns()
        if self._ran:
            self._ran = False
            self._ran_ns = now_ns
        if now_ns - self._ran_ns < self._keep_warm_ns:
            return
        try:
            if self._query():
                self._ran_ns = now_ns
                code = self._launch(self._warm_graph, self._handle)[0]
                if code:
                    self._launch_again(int(code), self._warm_graph, 1)
                self._record(self._stream)
        except self._pycuda_error as error:
            raise self._device_failed(str(error)) from error

    def bare_call(self, rows: int) -> Callable[[], object]:
        """Launch, record, and ask until it has finished."""
        if rows not in self._batches:
            raise self._refusal(rows)
        opened, graph, launch = self._opened, self._batches[rows][1], self._launch
        assert opened is not None

        def call() -> None:
            lane = opened.prepared.lane
            event = lane.event
            launch(graph, lane.handle)
            event.record(lane.stream)
            query = event.query
            while not query():
                pass

        return call

    @property
    def pci_bus_id(self) -> str:
        """See `OnGpu`."""
        return "" if self._opened is None else self._opened.gpu.facts.pci_bus_id

    def close(self) -> None:
        """Give everything back; a GPU that died or hangs keeps it until the process ends."""
        opened, self._opened = self._opened, None
        self._forget()
        if opened is not None and self._failure is None:
            opened.close()

    def __del__(self) -> None:
        # What belongs to the opened engine goes before it.
        self._forget()

    # -- not on the way of a batch that succeeds
    # ---------------------------------------------------------------

    def _check_memory(self, gpu: Gpu) -> None:
        """Whether the engine fits beside the other tenants of the card. Raises BackendUnavailable."""
        free_bytes, _ = gpu.memory()
        try:
            check_engine(self.spec.path, environment=_environment(self._trt, gpu.facts.index, free_bytes))
        except BackendUnavailable as error:
            raise BackendUnavailable(f"{error}; {who_holds(gpu.facts.pci_bus_id)}") from error

    def _remember(self, opened: _Opened) -> None:
        """Take out of the prepared engine what a batch needs."""
        gpu, prepared = opened.gpu, opened.prepared
        self.inputs = prepared.arrays.inputs[: self.batch_rows_max]
        self.outputs = prepared.arrays.outputs[: self.batch_rows_max]
        self.inputs[:] = 0.0
        self.outputs[:] = 0.0
        self._batches = {
            rows: (partial(np.multiply, self.inputs[:rows], _ONE, self.inputs[:rows]), graph)
            for rows, graph in prepared.graphs.items()
        }
        self._warm_graph = prepared.keep_warm_graph
        self._launch = gpu.driver.cuGraphLaunch
        self._handle = prepared.lane.handle
        self._stream = prepared.lane.stream
        self._record = prepared.lane.event.record
        self._query = prepared.lane.event.query
        self._pycuda_error = gpu.pycuda.Error

    def _forget(self) -> None:
        """Let go of all that `_remember` took."""
        self._batches = {}
        self._warm_graph = self._launch = self._handle = self._stream = self._record = self._query = None
        self._pycuda_error = Exception
        self._under_way = self._ran = False
        self._deadline_ns = self._ran_ns = 0

    def _refusal(self, rows: int) -> Exception:
        """What to raise where a batch of `rows` rows cannot be run."""
        if self._failure is not None:
            return BackendFailed(str(self._failure), fatal=True)
        if self._opened is None:
            return BackendClosed(
                f"{self.spec.path}: the backend is not open: call open() first, and nothing after close()"
            )
        return ValueError(f"a batch of {rows} rows, expected 1 to {self.batch_rows_max}")

    def _launch_again(self, code: int, graph: Any, rows: int) -> None:
        """A launch failed: once more where only this thread had no context yet. Nothing else is retried.

        Raises:
            BackendFailed: always otherwise. Not fatal where memory was short, for then nothing was started.
        """
        assert self._opened is not None
        gpu = self._opened.gpu
        if code == INVALID_CONTEXT:
            gpu.make_current()
            code = int(self._launch(graph, self._handle)[0])
            if not code:
                return
        what = f"the launch of a batch of {rows} rows: {gpu.error_name(code)}"
        if code in (OUT_OF_MEMORY, LAUNCH_OUT_OF_RESOURCES):
            raise BackendFailed(f"{self.spec.path}: {what}: nvidia-smi shows who holds the memory")
        raise self._device_failed(what)

    def _device_failed(self, what: str) -> BackendFailed:
        """The failure from which this process does not recover; the backend is finished with it."""
        assert self._opened is not None
        opened, gpu = self._opened, self._opened.gpu
        dead = gpu.sticky_error()
        facts = gpu.facts
        self._failure = BackendFailed(
            f"{self.spec.path}: GPU {facts.index} ({facts.name}) failed:"
            f" {what}{f' [{dead}]' if dead else ''}: it cannot be"
            " used by this process any more; look for Xid in the kernel's log (dmesg) and at nvidia-smi",
            fatal=True,
        )
        self._forget()
        opened.abandon()
        return self._failure

    def _not_opened(self, opened: _Opened, error: CudaError | TrtError) -> ModelError:
        """What to raise where the engine could not be prepared, everything freed again."""
        gpu, path = opened.gpu, self.spec.path
        if (isinstance(error, CudaError) and error.sticky) or gpu.dead():
            opened.abandon()
            self._failure = BackendFailed(
                f"{path}: GPU {gpu.facts.index} failed at start: {error}", fatal=True
            )
            return self._failure
        opened.close(error)
        if isinstance(error, TrtError) and not error.out_of_memory:
            return ModelRefused(f"{path}: {self._trt.runtime} {self._trt.version} refuses it: {error}")
        if isinstance(error, CudaError) and error.code != OUT_OF_MEMORY:
            return BackendFailed(f"{path}: GPU {gpu.facts.index} could not be prepared: {error}")
        return BackendUnavailable(
            f"{path}: the memory of GPU {gpu.facts.index} ({gpu.facts.name}) is too full for it ({error}):"
            f" {who_holds(gpu.facts.pci_bus_id)}"
        )


class _Opened:
    """An engine and the GPU that it is on. Closed with the last that holds it, where it was not closed
    before."""

    def __init__(self, gpu: Gpu, prepared: PreparedEngine) -> None:
        self.gpu = gpu
        self.prepared = prepared
        self._held = True

    def close(self, error: BaseException | None = None) -> None:
        """Free everything, once what runs has finished; also what the frames of an error hold."""

        def free() -> None:
            while_failing = error
            while while_failing is not None:
                clear_frames(while_failing.__traceback__)
                while_failing = while_failing.__context__
            if hasattr(self.prepared, "lane"):
                self.prepared.lane.finish(_CLOSE_TIMEOUT_MS)
            self.prepared.close()

        self._held = False
        try:
            self.gpu.run(free)
        except CudaError as failure:
            log.error(
                "GPU %d: what is held there is freed with the process only: %s", self.gpu.facts.index, failure
            )
            self.abandon()
            return
        self.gpu.release()

    def abandon(self) -> None:
        """Leave everything to the end of the process: freeing fails on a dead GPU, and never returns on a
        hung one."""
        self._held = False
        self.gpu.abandon(self.prepared)

    def __del__(self) -> None:
        if self._held and not sys.is_finalizing():
            self.close()
