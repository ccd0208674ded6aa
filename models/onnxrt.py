"""The ONNX Runtime backend: one session on the CPU, one prepared call per bucket, no copy and no lookup per
batch.

It runs in the caller's thread. `open()` sets that thread to flush denormals to zero; another thread that is
to call `submit()` must have called `sigd.models.denormals.flush_denormals()`, or been started by one that
had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from sigd.models.backend import Float32Array, aligned_rows, bucket_of_rows
from sigd.models.denormals import flush_denormals
from sigd.models.errors import BackendClosed, BackendFailed, BackendUnavailable, ModelRefused
from sigd.models.onnx.parts import WEIGHTS_FILE, OnnxParts, take_apart
from sigd.models.spec import ModelSpec, read_served

if TYPE_CHECKING:
    import onnxruntime

EXACT_ROWS_MAX = 64
"""Up to so many rows a batch runs just its own: 20 rows padded to 32 take a third longer. Past them a bucket
saves memory."""
_LOG_FATAL = 4
_ALLOCATION_FAILED = "Failed to allocate memory"


class OnnxRuntimeBackend:
    """A model on ONNX Runtime's CPU provider; see `Backend` for the contract.

    Args:
        spec: the model.
        batch_rows_max: the largest batch, in rows. A model with a fixed batch is opened with that one
            instead.
        intra_op_threads: threads that share one batch. More than one pays for large models only, because a
            wake-up costs more than a small one; they never spin between batches.
    """

    name = "onnxruntime"
    synchronous = True
    inputs: Float32Array
    outputs: Float32Array

    def __init__(
        self,
        spec: ModelSpec,
        batch_rows_max: int = 64,
        intra_op_threads: int = 1,
        *,
        optimised: bool = True,
    ) -> None:
        self.spec = spec
        self.batch_rows_max = batch_rows_max if spec.batch_rows is None else spec.batch_rows
        self._intra_op_threads = intra_op_threads
        self._optimised = optimised
        # For each number of rows the call that runs its bucket; empty while the backend is not open.
        self._runs: dict[int, Callable[[], object]] = {}
        # Between load() and prepare().
        self._session: onnxruntime.InferenceSession | None = None

    def open(self) -> None:
        """Load the model, bind every bucket and run each of them twice. Raises as `Backend.open` says."""
        self.load(onnx_parts(self.spec))
        for _ in self.prepare():
            pass

    def load(self, parts: OnnxParts) -> None:
        """The part of `open` that takes long and may be done by another thread, which holds Python's lock for
        a small part of that time.

        Args:
            parts: of the model that the spec was read from.

        Raises:
            ModelRefused, BackendUnavailable: as `Backend.open` says.
        """
        self._session = self._make_session(parts)

    def prepare(self) -> Iterator[None]:
        """The rest of `open`, in steps: each binds a bucket or runs it once. Raises as `Backend.open`
        says."""
        session, self._session = self._session, None
        flush_denormals()
        self.inputs = aligned_rows(self.batch_rows_max, self.spec.features)
        self.outputs = aligned_rows(self.batch_rows_max, self.spec.outputs)
        if self.spec.batch_rows is None:
            bucket_of = bucket_of_rows(self.batch_rows_max)
            exact = range(1, min(self.batch_rows_max, EXACT_ROWS_MAX) + 1)
        else:
            bucket_of = (self.batch_rows_max,) * (self.batch_rows_max + 1)
            exact = range(0)
        calls = {}
        for size in sorted(set(bucket_of)):
            calls[size] = self._bind(session, size)
            for _ in range(2):
                yield
                self._warm_up(size, calls[size])
        for size in exact:
            if size not in calls:
                yield
                calls[size] = self._bind(session, size)
        yield
        self._runs = {
            rows: calls.get(rows) or calls[bucket_of[rows]] for rows in range(1, self.batch_rows_max + 1)
        }

    def submit(self, rows: int) -> bool:
        """Run the first `rows` rows of `inputs`; True, for the outputs are there. Raises as `Backend.submit`
        says."""
        try:
            self._runs[rows]()
        except Exception as error:
            raise self._failure(rows, error) from error
        return True

    def ready(self) -> bool:
        """True: `submit` has finished the batch."""
        if not self._runs:
            raise self._closed()
        return True

    def bare_call(self, rows: int) -> Callable[[], object]:
        """The prepared call of the bucket that holds `rows` rows."""
        if rows not in self._runs:
            raise self._failure(rows, None)
        return self._runs[rows]

    def close(self) -> None:
        """Let the session and its bindings go."""
        self._runs = {}
        self._session = None

    def _failure(self, rows: int, error: Exception | None) -> Exception:
        """What to raise where running `rows` rows raised `error`. Kept off the way of a batch that
        succeeds."""
        if not self._runs:
            return self._closed()
        if rows not in self._runs:
            return ValueError(f"a batch of {rows} rows, expected 1 to {self.batch_rows_max}")
        return BackendFailed(f"{self.spec.path}: ONNX Runtime failed on a batch of {rows} rows: {error}")

    def _closed(self) -> BackendClosed:
        return BackendClosed(
            f"{self.spec.path}: the backend is not open: call open() first, and nothing after close()"
        )

    def _make_session(self, parts: OnnxParts) -> onnxruntime.InferenceSession:
        """One session, set up for the least time of one small batch."""
        onnxruntime = _runtime()
        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if self._optimised else levels.ORT_DISABLE_ALL
        )
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = self._intra_op_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Reaches the session's own threads; the calling thread is flush_denormals' business.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        # A failed batch is reported by BackendFailed, not on standard error.
        options.log_severity_level = _LOG_FATAL
        if parts.weights:
            options.add_external_initializers_from_files_in_memory(
                [WEIGHTS_FILE], [parts.weights], [len(parts.weights)]
            )
        try:
            return onnxruntime.InferenceSession(parts.graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            _raise_if_memory_lacks(error)
            raise ModelRefused(
                f"{self.spec.path}: ONNX Runtime {onnxruntime.__version__} refuses it: {error}"
            ) from error

    def _bind(self, session: onnxruntime.InferenceSession, size: int) -> Callable[[], object]:
        """The call that runs the first `size` rows, with input and output bound to the arrays themselves."""
        import onnxruntime

        binding = session.io_binding()
        for bind, name, rows, dims in (
            (binding.bind_ortvalue_input, self.spec.input_name, self.inputs[:size], self.spec.input_dims),
            (binding.bind_ortvalue_output, self.spec.output_name, self.outputs[:size], self.spec.output_dims),
        ):
            bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(rows.reshape(size, *dims)))
        return _prepared_call(session, binding, onnxruntime.RunOptions())

    def _warm_up(self, size: int, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            _raise_if_memory_lacks(error)
            cure = (
                "some operator has one batch size in it, such as a Reshape to [1, ...]: export the model"
                " with a free batch axis, or serve it with batch_rows_max 1"
                if size > 1
                else "the graph gives another shape than it declares: export it again"
            )
            raise ModelRefused(
                f"{self.spec.path}: does not run on a batch of {size} rows of zeros, expected"
                f" {(size, *self.spec.output_dims)} from {(size, *self.spec.input_dims)}: {cure} ({error})"
            ) from error


def _raise_if_memory_lacks(error: Exception) -> None:
    """Raise MemoryError where that is what ONNX Runtime means: no fault of the model's."""
    if isinstance(error, MemoryError) or _ALLOCATION_FAILED in str(error):
        raise MemoryError(str(error)) from error


def onnx_parts(spec: ModelSpec) -> OnnxParts:
    """What `load` takes. Where a release of ONNX Runtime takes no weights from memory, all of it is in the
    first part.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        ModelRefused: the file cannot be read, or has changed since its spec was read.
    """
    takes_weights = hasattr(_runtime().SessionOptions, "add_external_initializers_from_files_in_memory")
    file = read_served(spec)
    return take_apart(file.model) if takes_weights else OnnxParts(file.content, b"")


def _runtime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"the package onnxruntime cannot be imported ({error}): pip install onnxruntime"
        ) from error
    return cast(ModuleType, onnxruntime)


def _prepared_call(session: Any, binding: Any, run_options: Any) -> Callable[[], object]:
    """The call that runs `binding`.

    The wrapped objects save the checks of the Python layer, and run options of our own save making new ones
    for every
    batch: docs/decisions/ has the figures. Where a release of ONNX Runtime does not have the wrapped objects
    under these names, its public call does the same.
    """
    try:
        call = partial(session._sess.run_with_iobinding, binding._iobinding, run_options)
    except AttributeError:
        return partial(session.run_with_iobinding, binding, run_options)
    # The wrapped objects do not keep the arrays that they read and write: the binding does, so it lives with
    # the call.
    call.__dict__["binding"] = binding
    return call
