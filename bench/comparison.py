"""Two models on the same rows: do they say the same, how far apart are they, and what does each of them take?

Times are taken in turns, one call of each, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic_ns

import msgspec
import numpy as np
import numpy.typing as npt

from sigd.bench.errors import BadRequest
from sigd.models.accuracy import cosine, decisions, relative_errors, run_rows
from sigd.models.backend import Backend, Float32Array
from sigd.models.onnx.columns import Columns

QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
_WARMUP_CALLS = 200


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two."""

    file: str
    sha256: str
    backend: str
    p50_us: float
    p99_us: float
    max_us: float


class ErrorQuantile(msgspec.Struct, frozen=True, kw_only=True):
    """At most this far apart are `share` of all outputs; relative to b as `sigd.models.accuracy` has it."""

    share: float
    abs_error: float
    rel_error: float


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; b is the reference.

    Attributes:
        rows: how many were compared.
        data: where they come from.
        comparable: rows whose answers are finite on both sides.
        label_agreement: share of rows that decide the same, see `sigd.models.accuracy.decisions`. A row that
            is finite on one side alone disagrees, one that is on neither is left out; None where no row is
            comparable.
        bit_equal: share of outputs that are equal to the bit.
        not_finite_a, not_finite_b: rows with a NaN or an infinity in their answer. Errors leave those rows
            out.
        cosine: of all answers of a with all of b's, where both are finite; None where none are.
        errors: quantiles of |a - b| over all outputs; empty where no row is finite on both sides.
        batch_rows: rows in each timed call.
        calls: timed calls of each.
        latency_ratio: p50 of a by p50 of b.
    """

    a: Side
    b: Side
    rows: int
    data: str
    comparable: int
    label_agreement: float | None
    bit_equal: float
    not_finite_a: int
    not_finite_b: int
    cosine: float | None
    errors: tuple[ErrorQuantile, ...]
    batch_rows: int
    calls: int
    latency_ratio: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What the figures and the plot are drawn from.

    Attributes:
        abs_errors: float64, every |a - b| of the rows that are finite on both sides.
        times_a_ns, times_b_ns: int64, of each call, in turns.
    """

    abs_errors: npt.NDArray[np.float64]
    times_a_ns: npt.NDArray[np.int64]
    times_b_ns: npt.NDArray[np.int64]


def check_comparable(a: Backend, b: Backend) -> None:
    """Whether both read the same rows and give as many outputs. Raises BadRequest."""
    if (a.spec.features, a.spec.outputs) != (b.spec.features, b.spec.outputs):
        raise BadRequest(
            f"{a.spec.path} maps {a.spec.features} features to {a.spec.outputs} outputs, {b.spec.path}"
            f" {b.spec.features} to"
            f" {b.spec.outputs}: expected the same of both"
        )


def compare(
    a: Backend, b: Backend, rows: Float32Array, data: str, batch_rows: int, calls: int
) -> tuple[Comparison, Samples]:
    """Run both on all rows, then time both in turns.

    Args:
        a, b: open; b is the reference.
        rows: float32, shape (n, features), n at least 1.
        data: where the rows come from, for the record.
        batch_rows: rows in each timed call, at most either's largest batch.
        calls: timed calls of each.

    Raises:
        BadRequest: they cannot be compared.
        BackendFailed: one of them could not run a batch.
    """
    check_comparable(a, b)
    answers_a, answers_b = run_rows(a, rows), run_rows(b, rows)
    finite_a, finite_b = np.isfinite(answers_a).all(axis=1), np.isfinite(answers_b).all(axis=1)
    both = finite_a & finite_b
    abs_errors = np.abs(answers_a[both].astype(np.float64) - answers_b[both])
    times_a, times_b = _times(a, b, rows, batch_rows, calls)
    side_a, side_b = _side(a, times_a), _side(b, times_b)
    comparison = Comparison(
        a=side_a,
        b=side_b,
        rows=len(rows),
        data=data,
        comparable=int(np.sum(both)),
        label_agreement=_agreement(answers_a, answers_b, finite_a, finite_b, b.spec.output_columns),
        bit_equal=float(np.mean(answers_a.view(np.uint32) == answers_b.view(np.uint32))),
        not_finite_a=int(np.sum(~finite_a)),
        not_finite_b=int(np.sum(~finite_b)),
        cosine=cosine(answers_a[both], answers_b[both]) if both.any() else None,
        errors=_quantiles(abs_errors, relative_errors(answers_a[both], answers_b[both])),
        batch_rows=batch_rows,
        calls=calls,
        latency_ratio=side_a.p50_us / side_b.p50_us,
    )
    return comparison, Samples(abs_errors.ravel(), times_a, times_b)


def _agreement(
    answers_a: Float32Array,
    answers_b: Float32Array,
    finite_a: npt.ArrayLike,
    finite_b: npt.ArrayLike,
    columns: Sequence[Columns],
) -> float | None:
    finite_a, finite_b = np.asarray(finite_a), np.asarray(finite_b)
    both, either = finite_a & finite_b, finite_a | finite_b
    if not both.any():
        return None
    agree = decisions(answers_a[both], columns) == decisions(answers_b[both], columns)
    return float(np.sum(agree) / np.sum(either))


def _quantiles(
    abs_errors: npt.NDArray[np.float64], rel_errors: npt.NDArray[np.float64]
) -> tuple[ErrorQuantile, ...]:
    if not abs_errors.size:
        return ()
    # The next value above, not one in between that was never seen.
    absolute = np.quantile(abs_errors, QUANTILES, method="higher")
    relative = np.quantile(rel_errors, QUANTILES, method="higher")
    return tuple(
        ErrorQuantile(share=share, abs_error=float(error), rel_error=float(rel))
        for share, error, rel in zip(QUANTILES, absolute, relative, strict=True)
    )


def _times(
    a: Backend, b: Backend, rows: Float32Array, batch_rows: int, calls: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    batch = np.resize(rows, (batch_rows, rows.shape[1]))
    a.inputs[:batch_rows] = batch
    b.inputs[:batch_rows] = batch
    for _ in range(_WARMUP_CALLS):
        _time(a, batch_rows)
        _time(b, batch_rows)
    times = np.empty((calls, 2), np.int64)
    with _no_collection():
        for call in range(calls):
            # The second to run finds the caches as the first left them, so the order changes every time.
            first, second = (0, 1) if call % 2 == 0 else (1, 0)
            times[call, first] = _time((a, b)[first], batch_rows)
            times[call, second] = _time((a, b)[second], batch_rows)
    return times[:, 0], times[:, 1]


def _time(backend: Backend, rows: int) -> int:
    """Nanoseconds from the submission of a batch until its answers are there."""
    started_ns = monotonic_ns()
    if not backend.submit(rows):
        while not backend.ready():
            pass
    return monotonic_ns() - started_ns


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _side(backend: Backend, times_ns: npt.NDArray[np.int64]) -> Side:
    p50, p99, largest = (float(q) / 1000 for q in np.quantile(times_ns, (0.5, 0.99, 1.0), method="higher"))
    return Side(
        file=str(backend.spec.path),
        sha256=backend.spec.sha256.hex(),
        backend=backend.name,
        p50_us=p50,
        p99_us=p99,
        max_us=largest,
    )
