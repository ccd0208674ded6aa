"""The native backend: a plan run by the kernels in C, in the caller's thread.

A batch runs exactly its own rows, without buckets: a row gives the same bits alone and in any batch. The
kernels flush denormals by themselves, whatever the thread's settings are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, Final

from sigd.models.backend import Float32Array, aligned_rows
from sigd.models.engine import ENGINE_SUFFIX, read_engine
from sigd.models.errors import BackendClosed, BackendUnavailable, ModelRefused
from sigd.models.history import SteppedWindows, StepWindows
from sigd.models.native.lowering import lower
from sigd.models.onnx.parts import OnnxParts
from sigd.models.spec import ModelSpec, read_served

NOT_BUILT: Final = (
    "the native kernels are not built: sigd was installed where there is no C compiler. Install one"
    " (apt-get install gcc) and install sigd again: pip install --force-reinstall --no-deps --no-cache-dir"
    " --no-binary sigd sigd"
)


STATES_BYTES_MAX: Final = 1 << 30
"""Of one client's windows under way."""


def kernels() -> ModuleType:
    """The extension.

    Raises:
        BackendUnavailable: it was not built; with the cure.
    """
    try:
        from sigd.models.native import _kernels
    except ImportError as error:
        raise BackendUnavailable(f"{NOT_BUILT} ({error})") from error
    return _kernels


def kernels_are_built() -> bool:
    """Whether this installation has them."""
    try:
        kernels()
    except BackendUnavailable:
        return False
    return True


class NativeBackend:
    """A model on the native kernels; see `Backend` for the contract.

    Args:
        spec: the model: an ONNX file, or a native engine.
        batch_rows_max: the largest batch, in rows. A model with a fixed batch is opened with that one
            instead.
        instruction_set: which build of the kernels; None takes the best that this processor has.
    """

    name = "native"
    synchronous = True
    inputs: Float32Array
    outputs: Float32Array

    def __init__(self, spec: ModelSpec, batch_rows_max: int = 64, instruction_set: str | None = None) -> None:
        self.spec = spec
        self.batch_rows_max = batch_rows_max if spec.batch_rows is None else spec.batch_rows
        self._instruction_set = instruction_set
        self._runner: Any = None
        self._run: Callable[[int], object] | None = None
        self._sliding: Any = None
        self._why_not_sliding = "no history is kept"

    def open(self) -> None:
        """Check the plan, pack it for this processor, and run it twice. Raises as `Backend.open` says."""
        self.load(OnnxParts(self.plan(), b""))
        for _ in self.prepare():
            pass

    def load(self, parts: OnnxParts) -> None:
        """The part of `open` that another thread may do, without Python's lock for most of the time.

        Args:
            parts: the plan, in the place of the graph.

        Raises:
            ModelRefused, BackendUnavailable: as `Backend.open` says.
        """
        built = kernels()
        try:
            engine = built.load(parts.graph, self._instruction_set)
        except ValueError as error:
            raise ModelRefused(
                f"{self.spec.path}: not a plan that the native kernels run ({error}): build it again"
                " with sigd build-engine"
            ) from error
        if (engine.features, engine.outputs) != (self.spec.features, self.spec.outputs):
            raise ModelRefused(
                f"{self.spec.path}: its plan maps {engine.features} features to {engine.outputs} outputs,"
                f" its manifest says {self.spec.features} and {self.spec.outputs}: build it again with"
                " sigd build-engine"
            )
        self.inputs = aligned_rows(self.batch_rows_max, self.spec.features)
        self.outputs = aligned_rows(self.batch_rows_max, self.spec.outputs)
        self._runner = engine.runner(self.inputs, self.outputs)
        self._slide(engine)

    def _slide(self, engine: Any) -> None:
        """Have steps answered from states or columns, where the model allows it."""
        window = self.spec.window
        if window is None:
            return
        try:
            self._sliding = engine.sliding(window.steps, window.time_axis)
        except ValueError as error:
            self._why_not_sliding = str(error)

    def prepare(self) -> Iterator[None]:
        """The rest of `open`, in steps: each runs a batch."""
        for rows in (self.batch_rows_max, 1):
            yield
            self._runner.run(rows)
        self._run = self._runner.run

    def plan(self) -> bytes:
        """The engine's bytes, or the plan of an ONNX model.

        Raises:
            NotCovered: the kernels do not cover the model.
            ModelRefused: the file cannot be read, or has changed since its spec was read.
        """
        if self.spec.path.suffix == ENGINE_SUFFIX:
            return read_engine(self.spec)
        return lower(read_served(self.spec).model, self.spec)

    def submit(self, rows: int) -> bool:
        """Run the first `rows` rows of `inputs`; True, for the outputs are there."""
        if self._run is None:
            raise self._closed()
        self._run(rows)
        return True

    def ready(self) -> bool:
        """True: `submit` has finished the batch."""
        if self._run is None:
            raise self._closed()
        return True

    def bare_call(self, rows: int) -> Callable[[], object]:
        """The call into the kernels, for `rows` rows."""
        if self._run is None:
            raise self._closed()
        if not 1 <= rows <= self.batch_rows_max:
            raise ValueError(f"a batch of {rows} rows, expected 1 to {self.batch_rows_max}")
        return partial(self._run, rows)

    def runner(self, rows_max: int) -> Any:
        """What C code runs this model by, for batches of at most `rows_max` rows: see `engine.h`.

        Returns:
            A runner of its own, with scratch memory of its own; `.capsule` holds the `struct sigd_runner *`.
            It stays good when this backend is closed.
        """
        if self._runner is None:
            raise self._closed()
        inputs, outputs = (aligned_rows(rows_max, n) for n in (self.spec.features, self.spec.outputs))
        return self._runner.engine.runner(inputs, outputs)

    def state_bytes(self, instruments: int) -> int:
        """What is kept of so many instruments: a state for each step of a window and the gates of the next
        answer, or columns."""
        return 0 if self._sliding is None else int(self._sliding.place_floats) * 4 * instruments

    def kept_of_steps(self) -> str:
        """See `AnswersSteps`."""
        columns = self._sliding is not None and self._sliding.keeps_columns
        return "the columns of its layers" if columns else "the states of its windows"

    def why_whole_windows(self, instruments: int) -> str:
        """See `AnswersSteps`: the model does not allow it, or the states take more than STATES_BYTES_MAX."""
        if self._sliding is None:
            return self._why_not_sliding
        size = self.state_bytes(instruments)
        if size <= STATES_BYTES_MAX:
            return ""
        return (
            f"the states of {instruments:,} instruments would take {size / (1 << 20):,.0f} MiB of each"
            f" client, expected at most {STATES_BYTES_MAX >> 20:,}: set history.instruments_max to at most"
            f" {STATES_BYTES_MAX // self.state_bytes(1):,}"
        )

    def follow(self, windows: StepWindows) -> SteppedWindows | None:
        """See `AnswersSteps`."""
        if self.why_whole_windows(windows.instruments_max):
            return None
        states = aligned_rows(1, self.state_bytes(windows.instruments_max) // 4)
        made: SteppedWindows = self._sliding.windows(windows.rows, windows.stored, windows.begin, states)
        return made

    def advance(self) -> bool:
        """See `AnswersSteps`: at most six windows of one instrument take one step, or its layers one column,
        or its next answer is prepared."""
        return self._sliding is not None and bool(self._sliding.advance())

    def close(self) -> None:
        """Let the plan and its memory go."""
        self._sliding = None
        self._runner = None
        self._run = None

    def _closed(self) -> BackendClosed:
        return BackendClosed(
            f"{self.spec.path}: the backend is not open: call open() first, and nothing after close()"
        )
