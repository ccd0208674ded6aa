"""An engine on its GPU, ready to run: everything that is made once, before the first request.

    plan -> engine -> for each bucket: execution context -> captured graph (copy in, run, copy out)

The contexts share one block of scratch memory, and the buckets one pair of arrays, for only one batch runs at
a time. All of it is made and freed on the GPU's owner thread; `sigd.models.gpu.tensorrt` launches the graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sigd.models.backend import Float32Array, buckets
from sigd.models.errors import ModelRefused
from sigd.models.gpu.cuda import Gpu
from sigd.models.gpu.stream import (
    Lane,
    device_memory,
    free_device_memory,
    free_pinned,
    mapped_address,
    pinned_rows,
)
from sigd.models.gpu.trt_api import EngineTensor, RowRange, TensorRt
from sigd.models.spec import ModelSpec

if TYPE_CHECKING:
    from sigd.models.gpu.trt_types import Engine, ExecutionContext


@dataclass(frozen=True, slots=True)
class Arrays:
    """Rows in and out: pinned arrays, and where the engine reads and writes on the GPU.

    With mapped arrays those addresses are the pinned arrays' own: the engine works on them over the bus.
    """

    inputs: Float32Array
    outputs: Float32Array
    inputs_address: int
    outputs_address: int


def batches_for(ranges: Sequence[RowRange], batch_rows_max: int) -> dict[int, tuple[int, int]]:
    """The batch to run for each bucket, and the profile to run it with: bucket -> (rows, profile).

    A bucket that no profile takes runs as the next larger batch that one does. Of several profiles the one
    that is fastest nearest to it is taken.

    Raises:
        ValueError: no profile takes `batch_rows_max` rows.

    >>> batches_for([RowRange(1, 1, 1), RowRange(2, 8, 8)], 8)
    {1: (1, 0), 2: (2, 1), 4: (4, 1), 8: (8, 1)}
    >>> batches_for([RowRange(8, 8, 8)], 8)
    {1: (8, 0), 2: (8, 0), 4: (8, 0), 8: (8, 0)}
    """
    chosen = {}
    for bucket in buckets(batch_rows_max):
        fitting = [
            (max(bucket, rows.rows_min), abs(rows.rows_opt - max(bucket, rows.rows_min)), profile)
            for profile, rows in enumerate(ranges)
            if bucket <= rows.rows_max
        ]
        if not fitting:
            raise ValueError(
                f"no profile takes {bucket} rows, the largest takes {max(r.rows_max for r in ranges)}"
            )
        size, _, profile = min(fitting)
        chosen[bucket] = (size, profile)
    return chosen


class PreparedEngine:
    """An engine with its graphs. `open` and `close` are to be called inside `Gpu.run`.

    Attributes:
        lane: where the graphs run.
        arrays: what the caller writes and reads: `batch_rows_max` rows, or as many as the engine runs at
            least.
        graphs: rows -> executable graph of the bucket that holds them, for 1 to `batch_rows_max` rows.
        keep_warm_graph: runs the smallest batch on arrays of its own; None where it was not asked for.
    """

    lane: Lane
    arrays: Arrays

    def __init__(
        self, gpu: Gpu, trt: TensorRt, spec: ModelSpec, batch_rows_max: int, *, mapped: bool, timeout_ms: int
    ) -> None:
        self.graphs: dict[int, Any] = {}
        self.keep_warm_graph: Any = None
        self._gpu = gpu
        self._trt = trt
        self._spec = spec
        self._batch_rows_max = batch_rows_max
        self._mapped = mapped
        self._timeout_ms = timeout_ms
        self._engine: Engine | None = None
        self._memory: list[int] = []
        self._pinned: list[Float32Array] = []
        self._contexts: list[ExecutionContext] = []
        self._executables: list[Any] = []

    def open(self, plan: bytes, *, keep_warm: bool) -> None:
        """Load the plan, capture every bucket and run each of them twice.

        Raises:
            CudaError, TrtError: a call failed; `close` frees what there is, unless the device is dead.
            ModelRefused: the engine is not one for that spec.
        """
        self.lane = Lane(self._gpu)
        self._engine = self._trt.deserialize(plan)
        self._input, self._output = self._checked_tensors(self._engine)
        batches = self._batches(self._engine)
        self._scratch = self._allocate(self._trt.scratch_bytes(self._engine))
        self.arrays = self._make_arrays(max(size for size, _ in batches.values()))
        prepared = {batch: self._prepare(*batch) for batch in sorted(set(batches.values()))}
        for rows in range(1, self._batch_rows_max + 1):
            bucket = next(bucket for bucket in batches if bucket >= rows)
            self.graphs[rows] = prepared[batches[bucket]]
        if keep_warm:
            size, _ = min(prepared)
            self.keep_warm_graph = self._capture_apart(self._contexts[0], size)

    def close(self) -> None:
        """Free everything there is. To be called when nothing runs any more."""
        executables, self._executables = self._executables, []
        self.graphs, self.keep_warm_graph = {}, None
        self._contexts, self._engine = [], None
        memory, self._memory = self._memory, []
        pinned, self._pinned = self._pinned, []
        if hasattr(self, "lane"):
            self.lane.close(executables)
        for address in memory:
            free_device_memory(self._gpu, address)
        for array in pinned:
            free_pinned(self._gpu, array)

    def _checked_tensors(self, engine: Engine) -> tuple[EngineTensor, EngineTensor]:
        """Input and output, once they are what the spec says."""
        spec = self._spec
        inputs, outputs = self._trt.tensors(engine)
        expected = ((spec.input_name, spec.input_dims), (spec.output_name, spec.output_dims))
        found = tuple((tensor.name, tensor.dims[1:]) for tensor in (*inputs, *outputs))
        if (len(inputs), len(outputs)) != (1, 1) or found != expected:
            raise ModelRefused(
                f"{spec.path}: the engine's tensors are {found}, expected {expected}, input and output: it is"
                " not the engine"
                " that its manifest describes, build it again"
            )
        for tensor in (*inputs, *outputs):
            if not tensor.plain:
                raise ModelRefused(
                    f"{spec.path}: {tensor.name!r} is not float32 in C order on the GPU, expected exactly"
                    " that at both ends:"
                    " build it with sigd build-engine"
                )
        return inputs[0], outputs[0]

    def _batches(self, engine: Engine) -> dict[int, tuple[int, int]]:
        ranges = self._trt.row_ranges(engine, self._input)
        try:
            return batches_for(ranges, self._batch_rows_max)
        except ValueError as error:
            raise ModelRefused(
                f"{self._spec.path}: batches of up to {self._batch_rows_max} rows were asked for, but"
                f" {error}: serve with a"
                " smaller --batch-rows-max, or build it again with a larger --batch-max"
            ) from error

    def _allocate(self, size_bytes: int) -> tuple[int, int]:
        address = device_memory(self._gpu, size_bytes)
        self._memory.append(address)
        return address, size_bytes

    def _make_arrays(self, rows: int) -> Arrays:
        inputs = pinned_rows(self._gpu, rows, self._spec.features)
        self._pinned.append(inputs)
        outputs = pinned_rows(self._gpu, rows, self._spec.outputs)
        self._pinned.append(outputs)
        if self._mapped:
            return Arrays(
                inputs, outputs, mapped_address(self._gpu, inputs), mapped_address(self._gpu, outputs)
            )
        return Arrays(inputs, outputs, self._allocate(inputs.nbytes)[0], self._allocate(outputs.nbytes)[0])

    def _prepare(self, size: int, profile: int) -> Any:
        """The graph of one batch size, run twice."""
        assert self._engine is not None
        context = self._trt.context(self._engine, self._scratch, self.lane.stream.handle, profile)
        self._contexts.append(context)
        self._bind(context, size, self.arrays)
        return self._capture(context, size, self.arrays)

    def _capture(self, context: ExecutionContext, size: int, arrays: Arrays) -> Any:
        """The graph of a context that is bound to these arrays, run twice."""
        # What a context does once, at its first run after it was bound, must be over before it is captured.
        self._trt.enqueue(context, self.lane.stream.handle)
        self.lane.finish(self._timeout_ms)
        executable = self.lane.capture(partial(self._record, context, size, arrays))
        self._executables.append(executable)
        for _ in range(2):
            self.lane.launch(executable)
            self.lane.finish(self._timeout_ms)
        return executable

    def _record(self, context: ExecutionContext, size: int, arrays: Arrays, stream: int) -> None:
        """What a batch does, in the order of a stream."""
        self._trt.check_capturable(context, stream)
        if not self._mapped:
            self.lane.copy_in(arrays.inputs_address, arrays.inputs[:size], stream)
        self._trt.enqueue(context, stream)
        if not self._mapped:
            self.lane.copy_out(arrays.outputs[:size], arrays.outputs_address, stream)

    def _capture_apart(self, context: ExecutionContext, size: int) -> Any:
        """A graph of a context that touches none of the caller's rows."""
        own = self._make_arrays(size)
        self._bind(context, size, own)
        try:
            return self._capture(context, size, own)
        finally:
            self._bind(context, size, self.arrays)

    def _bind(self, context: ExecutionContext, size: int, arrays: Arrays) -> None:
        spec = self._spec
        self._trt.bind(context, self._input, (size, *spec.input_dims), arrays.inputs_address)
        self._trt.bind_output(context, self._output, (size, *spec.output_dims), arrays.outputs_address)
