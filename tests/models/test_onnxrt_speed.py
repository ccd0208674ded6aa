"""Benchmarks of the ONNX Runtime backend; an ordinary test run only sees that each of them runs.

The figures that the options were chosen by (docs/decisions/) come from

    pytest tests/models/test_onnxrt_speed.py --benchmark-enable --benchmark-group-by=param:rows \
        --benchmark-columns=min,median,iqr --benchmark-max-time=2
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sigd.models.denormals import flush_denormals
from sigd.models.registry import open_backend

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

FEATURES = 64
Options = Any
"""`onnxruntime.SessionOptions`, which comes without types."""

OTHER_OPTIONS: dict[str, Callable[[Options], object]] = {
    "as chosen": lambda options: None,
    "no memory pattern": lambda options: setattr(options, "enable_mem_pattern", False),
    "no arena": lambda options: setattr(options, "enable_cpu_mem_arena", False),
    "no reuse of memory": lambda options: setattr(options, "enable_mem_reuse", False),
    "no prepacking": lambda options: options.add_session_config_entry("session.disable_prepacking", "1"),
    "basic optimisations": lambda options: setattr(
        options, "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ),
    "parallel execution": lambda options: setattr(
        options, "execution_mode", onnxruntime.ExecutionMode.ORT_PARALLEL
    ),
    "2 threads": lambda options: setattr(options, "intra_op_num_threads", 2),
    "2 threads that spin": lambda options: spin(options),
}
CALLS = ("run", "run_with_iobinding", "wrapped", "wrapped with run options")


@pytest.fixture(scope="module")
def network(models: ModelMaker) -> Path:
    """The size of the shipped model: 64-256-256-3."""
    return models.mlp(FEATURES, [256, 256], 3)


@pytest.fixture(params=[1, 64])
def rows(request: pytest.FixtureRequest) -> int:
    """The two ends: a lone request and a full batch."""
    return int(request.param)


@pytest.mark.parametrize("way", ["submit", "bare_call"])
def test_the_backend(benchmark: BenchmarkFixture, network: Path, rows: int, way: str) -> None:
    backend = open_backend(network)
    backend.inputs[:] = draw(64)
    if way == "submit":
        benchmark(backend.submit, rows)
    else:
        benchmark(backend.bare_call(rows))
    assert backend.outputs[:rows].any()


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_session_options(benchmark: BenchmarkFixture, network: Path, rows: int, name: str) -> None:
    flush_denormals()
    session = open_session(network, OTHER_OPTIONS[name])
    benchmark(prepared(session, draw(rows), "wrapped with run options"))


@pytest.mark.parametrize("way", CALLS)
def test_ways_to_call(benchmark: BenchmarkFixture, network: Path, rows: int, way: str) -> None:
    flush_denormals()
    benchmark(prepared(open_session(network), draw(rows), way))


@pytest.mark.parametrize("flushed", [True, False], ids=["flushed", "kept"])
def test_denormal_features(benchmark: BenchmarkFixture, network: Path, rows: int, flushed: bool) -> None:
    session = open_session(network)
    if flushed:
        flush_denormals()
    denormals = np.full((rows, FEATURES), 1 << 16, np.uint32).view(np.float32)
    benchmark(prepared(session, denormals, "wrapped with run options"))


def draw(rows: int) -> np.typing.NDArray[np.float32]:
    return np.random.default_rng(0).random((rows, FEATURES), np.float32)


def spin(options: Options) -> None:
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")


def open_session(path: Path, change: Callable[[Options], object] = lambda options: None) -> Any:
    """A session as the backend opens it, but for one change."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    change(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def prepared(session: Any, features: np.typing.NDArray[np.float32], way: str) -> Callable[[], object]:
    """A call of the session for one batch, made in one of the ways there are."""
    if way == "run":
        names, feed = ["logits"], {"features": features}
        return lambda: session.run(names, feed)
    outputs = np.zeros((len(features), 3), np.float32)
    binding = session.io_binding()
    binding.bind_ortvalue_input("features", onnxruntime.OrtValue.ortvalue_from_numpy(features))
    binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(outputs))
    if way == "run_with_iobinding":
        return lambda: session.run_with_iobinding(binding)
    # ONNX Runtime has no public way past its Python layer, which is what this measures.
    wrapped, wrapped_binding = session._sess.run_with_iobinding, binding._iobinding
    run_options = onnxruntime.RunOptions() if way == "wrapped with run options" else None
    return lambda: (wrapped(wrapped_binding, run_options), binding)
