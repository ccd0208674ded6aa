"""The shipped model on this machine's GPU: built, loaded, run. The conformance suite runs beside this, over
small models."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from sigd.models.backend import Backend
from sigd.models.gpu.options import GpuOptions
from sigd.models.oracle import OracleBackend
from sigd.models.registry import open_backend
from sigd.models.spec import read_spec
from sigd.models.zoo import default_model_path

if TYPE_CHECKING:
    from tests.gpu.conftest import EngineOf

pytestmark = pytest.mark.gpu

Float32Array = npt.NDArray[np.float32]
ROWS = 64
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}
"""Of the largest answer: float32 adds up in another order; TF32 and half precision have 10 bits."""


def run_batch(backend: Backend, features: Float32Array) -> Float32Array:
    rows = len(features)
    backend.inputs[:rows] = features
    finished = backend.submit(rows)
    while not finished:
        finished = backend.ready()
    return backend.outputs[:rows].copy()


@pytest.fixture(scope="module")
def features() -> Float32Array:
    spec = read_spec(default_model_path())
    return np.random.default_rng(0).standard_normal((ROWS, spec.features), np.float32)


@pytest.fixture(scope="module")
def expected(features: Float32Array) -> Float32Array:
    oracle = OracleBackend(read_spec(default_model_path()), ROWS)
    oracle.open()
    return run_batch(oracle, features)


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_every_number_of_rows_agrees_with_the_oracle(
    engine_of: EngineOf, features: Float32Array, expected: Float32Array, precision: str, mapped: bool
) -> None:
    backend = open_backend(engine_of(precision), batch_rows_max=ROWS, gpu=GpuOptions(mapped_io=mapped))
    try:
        assert backend.name == "tensorrt"
        allowed = TOLERANCE[precision] * float(np.abs(expected).max())
        for rows in range(1, ROWS + 1):
            np.testing.assert_allclose(
                run_batch(backend, features[:rows]), expected[:rows], atol=allowed, rtol=0
            )
    finally:
        backend.close()


def test_int8_is_built_and_runs(engine_of: EngineOf, features: Float32Array) -> None:
    backend = open_backend(engine_of("int8"), batch_rows_max=ROWS)
    assert np.isfinite(run_batch(backend, features)).all()
    backend.close()


def test_two_engines_share_the_card_and_one_may_go(
    engine_of: EngineOf, features: Float32Array, expected: Float32Array
) -> None:
    """As in a change of the model: the next one is opened while the present one serves."""
    first, second = (
        open_backend(engine_of(precision), batch_rows_max=ROWS) for precision in ("fp32", "fp16")
    )
    run_batch(first, features)
    first.close()
    allowed = TOLERANCE["fp16"] * float(np.abs(expected).max())
    np.testing.assert_allclose(run_batch(second, features), expected, atol=allowed, rtol=0)
    second.close()


def test_memory_does_not_grow(engine_of: EngineOf, features: Float32Array) -> None:
    """On the host: ten thousand batches leave nothing behind."""
    backend = open_backend(engine_of(), batch_rows_max=ROWS)
    for _ in range(1000):
        run_batch(backend, features[:3])
    before = resident_bytes()
    for _ in range(10_000):
        run_batch(backend, features[:3])
    assert resident_bytes() - before < 4 << 20
    backend.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("keep_warm", [False, True], ids=["", "kept warm"])
@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_latency_of_the_backend_is_reported(
    engine_of: EngineOf,
    report: dict[str, Any],
    timed_batches: int,
    precision: str,
    mapped: bool,
    keep_warm: bool,
) -> None:
    """From `submit()` to a `ready()` that says yes, in this process: no socket, no daemon."""
    options = GpuOptions(mapped_io=mapped, keep_warm_us=100 if keep_warm else 0)
    backend = open_backend(engine_of(precision), batch_rows_max=ROWS, gpu=options)
    for rows in (1, 8, 64):
        name = (
            f"{precision} {'mapped' if mapped else 'copied'}{' kept warm' if keep_warm else ''} {rows} rows"
        )
        idle = getattr(backend, "keep_warm", lambda: None) if keep_warm else lambda: None
        report["backend"][name] = latency(backend, rows, timed_batches, idle)
    backend.close()
    assert report["backend"]


def latency(backend: Backend, rows: int, batches: int, idle: Callable[[], object]) -> dict[str, float]:
    """Quantiles in us; 50 us of idleness before each batch, as between two requests."""
    taken = np.empty(batches)
    for batch in range(-200, batches):
        until = time.perf_counter_ns() + 50_000
        while time.perf_counter_ns() < until:
            idle()
        start = time.perf_counter_ns()
        backend.submit(rows)
        while not backend.ready():
            pass
        if batch >= 0:
            taken[batch] = (time.perf_counter_ns() - start) / 1000
    return {f"p{q:g}_us": round(float(np.percentile(taken, q)), 2) for q in (50, 90, 99, 99.9, 100)}
