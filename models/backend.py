"""The contract of a backend: a model that is loaded, warmed up and ready to run batches.

    open() -> inputs[:rows] = ...; submit(rows) -> ready() -> outputs[:rows] -> ... -> close()

A backend owns its two arrays for life and never replaces them, so a caller may keep views into them. Rows
beyond `rows` in `inputs` may be computed too (a bucket is padded with whatever stands there) and their
outputs mean nothing. Between a `submit()` that returned False and the `ready()` that returned True both
arrays belong to the
backend: the caller neither reads nor writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sigd.models.history import SteppedWindows, StepWindows
from sigd.models.spec import ModelSpec

Float32Array = npt.NDArray[np.float32]
_PAGE_BYTES = 4096


class Backend(Protocol):
    """A model on a device, opened with a fixed largest batch.

    Attributes:
        name: the backend's name on the command line, for example "onnxruntime".
        spec: what the model is.
        batch_rows_max: the largest batch, in rows: what was asked for, or the batch that the model itself
            fixes. Read it from here, not from what was asked for.
        inputs: float32, shape (batch_rows_max, spec.features), C order; valid after open().
        outputs: float32, shape (batch_rows_max, spec.outputs), C order; valid after open().
        synchronous: True where submit() always finishes the batch itself, so that ready() need not be asked.
    """

    name: str
    spec: ModelSpec
    batch_rows_max: int
    inputs: Float32Array
    outputs: Float32Array
    synchronous: bool

    def open(self) -> None:
        """Load the model, prepare every bucket and run each of them twice, so that no request pays for a
        first time.

        To be called by the thread that will call `submit`: a CPU backend sets that thread to flush denormals
        to zero.

        Raises:
            BackendUnavailable: this machine or installation cannot run it; the message says how to get it.
            ModelRefused: the model cannot be served by this backend.
        """

    def submit(self, rows: int) -> bool:
        """Start the first `rows` rows of `inputs`, 1 <= rows <= batch_rows_max.

        Returns True where the outputs are there already (CPU backends), False where `ready()` will tell.

        Raises:
            BackendFailed: the batch could not be run; none of its outputs may be used.
            BackendClosed: not open.
            ValueError: `rows` is out of its range.
        """

    def ready(self) -> bool:
        """True once the submitted batch has finished and `outputs` may be read. Never blocks.

        Raises:
            BackendFailed: the batch failed on the device.
            BackendClosed: not open.
        """

    def bare_call(self, rows: int) -> Callable[[], object]:
        """The least that runs a batch of `rows` rows on this backend, without our checks: what benchmarks
        call the floor. Calling it blocks until the outputs are there."""

    def close(self) -> None:
        """Give everything back. A second close() does nothing; any other call then raises BackendClosed. What
        was in `inputs` and `outputs` may no longer be read or written."""


@runtime_checkable
class KeepsWarm(Protocol):
    """A backend whose device grows slow when it idles."""

    def keep_warm(self) -> None:
        """Between two batches: run an empty one, if it is time. Never waits.

        Raises:
            BackendFailed: the device failed.
        """


@runtime_checkable
class BoundToThread(Protocol):
    """A backend that knows the thread which runs its batches."""

    def take_over(self) -> None:
        """To be called by that thread before its first `submit`, where another one has called `open`.

        Raises:
            BackendUnavailable: this thread cannot be made fit for it.
            BackendFailed: the device failed.
        """


@runtime_checkable
class AnswersSteps(Protocol):
    """A backend that may answer the newest step of a window from what it kept of those before, with the bits
    of the whole window."""

    def state_bytes(self, instruments: int) -> int:
        """What it keeps for the windows of so many instruments; 0 where the model does not allow it."""

    def kept_of_steps(self) -> str:
        """From what it answers steps, in words: "the states of its windows"."""

    def why_whole_windows(self, instruments: int) -> str:
        """Why it runs whole windows for a client with so many instruments; "" where it answers steps."""

    def follow(self, windows: StepWindows) -> SteppedWindows | None:
        """What it keeps for a client's windows from now on; None where it runs whole windows.

        Raises:
            MemoryError: there is none for it.
        """

    def advance(self) -> bool:
        """After an answer: do a part of the work that it left for later, a few steps; whether there was
        any."""


@runtime_checkable
class OnGpu(Protocol):
    """A backend whose model is on a GPU."""

    @property
    def pci_bus_id(self) -> str:
        """Of the card, for example "0000:01:00.0"; "" where it is not open."""


def buckets(batch_rows_max: int) -> tuple[int, ...]:
    """The batch sizes that are prepared: 1, 2, 4, ... and `batch_rows_max` itself.

    >>> buckets(12)
    (1, 2, 4, 8, 12)
    """
    if batch_rows_max < 1:
        raise ValueError(f"batch_rows_max is {batch_rows_max}, expected at least 1")
    sizes = []
    size = 1
    while size < batch_rows_max:
        sizes.append(size)
        size *= 2
    return (*sizes, batch_rows_max)


def bucket_of_rows(batch_rows_max: int) -> tuple[int, ...]:
    """For each number of rows 0..batch_rows_max the smallest bucket that holds them (0 maps to the
    smallest)."""
    sizes = buckets(batch_rows_max)
    return tuple(next(size for size in sizes if size >= rows) for rows in range(batch_rows_max + 1))


def aligned_rows(rows: int, columns: int) -> Float32Array:
    """Zeros, float32, (rows, columns), starting on a page."""
    size = rows * columns * 4
    raw = np.zeros(size + _PAGE_BYTES, np.uint8)
    start = -raw.ctypes.data % _PAGE_BYTES
    return raw[start : start + size].view(np.float32).reshape(rows, columns)
