"""A whole build for the native kernels: each precision, what is not covered, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import helper

from sigd.models.accuracy import check_golden, run_rows
from sigd.models.build.pipeline import AccuracyTooLow, build_engine
from sigd.models.build.request import BuildRequest
from sigd.models.build.runtimes import Machine
from sigd.models.manifest import Accuracy, Manifest
from sigd.models.native.backend import NativeBackend, kernels_are_built
from sigd.models.native.lowering import NotCovered
from sigd.models.registry import open_backend
from sigd.models.rows import seeded_rows
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Build = Callable[..., Manifest]
NATIVE = Machine(frozenset({"native", "onnxruntime"}), None, "no driver")
pytestmark = pytest.mark.skipif(
    not kernels_are_built(), reason="the native kernels are not built: python hatch_build.py"
)
HIDDEN = (40, 24)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "built.engine"


@pytest.fixture
def build_native(engine: Path) -> Build:
    """build_native(model, **options)"""

    def build(model: Path, **options: Any) -> Manifest:
        options = {"runtime": "native"} | options
        return build_engine(BuildRequest(model=model, engine=engine, **options), machine=NATIVE)

    return build


@pytest.fixture
def rows_file(tmp_path_factory: pytest.TempPathFactory, models: ModelMaker) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, seeded_rows(read_spec(models.mlp()), 200, seed=5))
    return path


@pytest.mark.parametrize(
    ("precision", "least", "most"),
    [("fp32", 0.0, 1e-5), ("fp16", 1e-6, 3e-3), ("bf16", 1e-5, 3e-2), ("int8", 1e-4, 5e-2)],
)
def test_native_engine_is_as_near_as_its_precision(
    models: ModelMaker,
    build_native: Build,
    engine: Path,
    rows_file: Path,
    precision: str,
    least: float,
    most: float,
) -> None:
    model = models.mlp(hidden=HIDDEN)
    manifest = build_native(model, precision=precision, calibration=rows_file)
    assert (manifest.runtime, manifest.precision) == ("native", precision)
    assert isinstance(manifest.accuracy, Accuracy)
    assert least <= manifest.accuracy.max_abs <= most
    served, truth = open_backend(engine), open_backend(model, "oracle")
    assert isinstance(served, NativeBackend)
    assert check_golden(served, manifest) <= manifest.golden.max_abs_allowed
    rows = np.load(rows_file)
    answers = run_rows(served, rows)
    assert np.abs(answers - run_rows(truth, rows)).max() <= most
    served.inputs[0] = rows[-1]
    served.submit(1)
    assert served.outputs[0].tobytes() == answers[-1].tobytes()


def test_precision_behind_the_gate_writes_nothing(
    models: ModelMaker, build_native: Build, engine: Path, rows_file: Path
) -> None:
    model = models.mlp(hidden=HIDDEN, outputs=12, seed=4)
    with pytest.raises(AccuracyTooLow, match=r"expected at least 100\.00%"):
        build_native(model, precision="int8", calibration=rows_file, agreement_min=1.0)
    assert not engine.exists()


def test_operation_that_is_not_covered_is_named(
    models: ModelMaker, build_native: Build, engine: Path
) -> None:
    model = models.graph([helper.make_node("Cos", ["features"], ["logits"])], ["N", 8], ["N", 8])
    with pytest.raises(NotCovered, match=r"Cos .*: the native kernels do not have it"):
        build_native(model)
    assert not engine.exists()


def test_options_that_the_native_kernels_do_not_have_are_refused(
    models: ModelMaker, build_native: Build
) -> None:
    with pytest.raises(ValueError, match="tf32: the native kernels have weights in fp32, fp16, bf16, int8"):
        build_native(models.mlp(), precision="tf32")
    with pytest.raises(ValueError, match="bf16: only the native kernels have it"):
        build_native(models.mlp(), precision="bf16", runtime="onnxruntime")
    with pytest.raises(ValueError, match="one way to run a model"):
        build_native(models.mlp(), optimization_level=1)
