"""Which of the CPU's backends serves an ONNX model: the native kernels where they cover it, agree with ONNX
Runtime and are faster."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from sigd.models.accuracy import error_max, measure, run_rows
from sigd.models.backend import Backend
from sigd.models.errors import BackendUnavailable, ModelRefused
from sigd.models.native.backend import NativeBackend
from sigd.models.native.lowering import NotCovered
from sigd.models.onnxrt import OnnxRuntimeBackend
from sigd.models.rows import seeded_rows
from sigd.models.spec import ModelSpec

_ROUNDS: Final = 5
"""Turns that each of the two takes: what slows the machine down for a moment slows both."""
_RUNS: Final = 40
"""Batches of one row in a turn, of different rows: one row again and again would flatter trees."""
_SECONDS_MAX: Final = 0.2
_COMPARED_ROWS: Final = 256
_LABELS_AGREE_MIN: Final = 0.99
"""Two sums of the same numbers in another order tip a label over in next to no row."""


@dataclass(frozen=True, slots=True)
class CpuChoice:
    """What was chosen.

    Attributes:
        backend: its name in the registry.
        why: for people, with both figures where both were measured.
    """

    backend: Literal["native", "onnxruntime"]
    why: str


def choose_cpu_backend(spec: ModelSpec) -> CpuChoice:
    """Compare both over rows, then measure them in turns on one row. ONNX Runtime serves where the native
    kernels do not cover the model or answer otherwise: what a model's owner has tried is ONNX Runtime's.

    To be called on a thread whose floating-point settings may change.

    Args:
        spec: of an ONNX file.

    Raises:
        ModelRefused: ONNX Runtime refuses the model.
        BackendUnavailable: neither is installed.
    """
    native = NativeBackend(spec, 1)
    try:
        native.open()
    except NotCovered as error:
        return CpuChoice("onnxruntime", f"the native kernels do not cover {error}")
    except BackendUnavailable as error:
        return CpuChoice("onnxruntime", str(error))
    other = OnnxRuntimeBackend(spec, 1)
    try:
        other.open()
        if differs := _difference(native, other):
            return CpuChoice("onnxruntime", differs)
        native_us, other_us = _medians_us(native, other)
    finally:
        native.close()
        other.close()
    figures = f"one row takes the native kernels {native_us:.1f} us, ONNX Runtime {other_us:.1f} us"
    return CpuChoice("native" if native_us < other_us else "onnxruntime", figures)


def _difference(native: NativeBackend, other: OnnxRuntimeBackend) -> str:
    """How the native kernels' answers differ from ONNX Runtime's by more than rounding; "" where they do
    not."""
    spec = other.spec
    rows = seeded_rows(spec, _COMPARED_ROWS, seed=1)
    reference = run_rows(other, rows)
    try:
        found = measure(run_rows(native, rows), reference, "the native kernels", spec.output_columns)
    except ModelRefused as error:
        return str(error)
    if found.max_abs > (most := error_max("fp32", reference)):
        return (
            f"the native kernels answer up to {found.max_abs:.3g} away from it in {len(rows)} rows, expected"
            f" at most {most:.3g}"
        )
    if found.label_agreement < _LABELS_AGREE_MIN:
        return f"the native kernels decide as it does in {found.label_agreement:.1%} of {len(rows)} rows only"
    return ""


def _medians_us(*backends: Backend) -> list[float]:
    """The median time of a row on each, in microseconds."""
    calls = [backend.bare_call(backend.batch_rows_max) for backend in backends]
    taken: list[list[int]] = [[] for _ in backends]
    batch_rows = backends[0].batch_rows_max
    batches = seeded_rows(backends[0].spec, _RUNS * batch_rows, seed=0).reshape(_RUNS, batch_rows, -1)
    deadline_ns = time.monotonic_ns() + int(_SECONDS_MAX * 1e9)
    for _ in range(_ROUNDS):
        for backend, call, times in zip(backends, calls, taken, strict=True):
            for batch in batches:
                backend.inputs[:] = batch
                start_ns = time.monotonic_ns()
                call()
                times.append(time.monotonic_ns() - start_ns)
                if start_ns > deadline_ns:
                    break
    return [float(np.median(times)) / 1e3 for times in taken]
