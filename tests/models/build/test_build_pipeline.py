"""A whole build for ONNX Runtime: what is written, what it says of itself, and that a failure leaves
nothing."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.models.market.captures import is_depth, market, packed

from sigd.models.accuracy import check_golden, run_rows
from sigd.models.build import pipeline, precision
from sigd.models.build.pipeline import AccuracyTooLow
from sigd.models.build.request import Batches
from sigd.models.engine import EngineNotWritten, read_manifest
from sigd.models.errors import ModelRefused
from sigd.models.features.catalogue import FEATURE_COUNT
from sigd.models.manifest import Accuracy, Manifest
from sigd.models.oracle import OracleBackend
from sigd.models.processor import instruction_sets
from sigd.models.registry import open_backend
from sigd.models.rows import RowsRefused, seeded_rows
from sigd.models.spec import read_spec

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Build = Callable[..., Manifest]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return tmp_path / "built.engine"


@pytest.fixture
def rows_file(tmp_path_factory: pytest.TempPathFactory, models: ModelMaker) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, seeded_rows(read_spec(models.mlp()), 200, seed=5))
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_answers_as_its_model_does(
    models: ModelMaker, build_here: Build, engine: Path, rows_file: Path, precision: str
) -> None:
    model = models.mlp()
    manifest = build_here(model, precision=precision, calibration=rows_file)
    assert isinstance(manifest.accuracy, Accuracy)
    rows = np.load(rows_file)
    served, truth = open_backend(engine), open_backend(model, "oracle")
    assert served.name == "onnxruntime"
    difference = np.abs(run_rows(served, rows) - run_rows(truth, rows)).max()
    loosest = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.2}[precision]
    assert difference < loosest
    assert manifest.accuracy.max_abs < loosest
    assert check_golden(served, manifest) <= manifest.golden.max_abs_allowed


def test_the_manifest_says_what_was_built(models: ModelMaker, build_here: Build, engine: Path) -> None:
    model = models.mlp()
    manifest = build_here(model)
    assert read_manifest(engine) == manifest
    assert manifest.source.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert manifest.plan.sha256 == hashlib.sha256(engine.read_bytes()).hexdigest()
    assert manifest.plan.size_bytes == engine.stat().st_size
    assert (manifest.input.name, manifest.input.row_dims) == ("features", (8,))
    assert (manifest.output.name, manifest.output.row_dims) == ("logits", (3,))
    assert manifest.batch_rows_max == 64
    assert manifest.target.cpu is None
    assert {"sigd", "onnx", "onnxruntime", "numpy"} <= set(manifest.tools)
    assert manifest.build_seconds > 0
    assert list(manifest.rebuild[:3]) == ["sigd", "build-engine", str(model)]


def test_golden_rows_hold_what_the_oracle_answered(models: ModelMaker, build_here: Build) -> None:
    model = models.mlp()
    golden = build_here(model, seed=7).golden
    assert golden.source == "standard normal, seed 7"
    answers = run_rows(open_backend(model, "oracle", batch_rows_max=1), golden.feature_rows())
    np.testing.assert_allclose(golden.output_rows(), answers, rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_golden_rows(models: ModelMaker, build_here: Build) -> None:
    model = models.mlp()
    first, again, other = (build_here(model, seed=seed).golden for seed in (1, 1, 2))
    assert first == again
    assert first.features != other.features


def test_layouts_for_this_processor_are_marked_as_such(models: ModelMaker, build_here: Build) -> None:
    assert build_here(models.conv(), optimization_level=2).target.cpu is None
    assert build_here(models.conv(), optimization_level=3).target.cpu == instruction_sets()


def test_optimising_fuses_what_can_be_fused(models: ModelMaker, build_here: Build, engine: Path) -> None:
    build_here(models.mlp(), optimization_level=0)
    plain = [node.op_type for node in onnx.load(engine).graph.node]
    build_here(models.mlp(), optimization_level=2)
    assert plain == ["Gemm", "Relu", "Gemm"]
    assert [node.op_type for node in onnx.load(engine).graph.node] == ["FusedGemm", "Gemm"]


@pytest.mark.parametrize("kind", ["conv", "lstm", "summed", "doubled"])
def test_models_of_other_shapes_build(models: ModelMaker, build_here: Build, engine: Path, kind: str) -> None:
    manifest = build_here(getattr(models, kind)())
    assert isinstance(manifest.accuracy, Accuracy)
    assert manifest.accuracy.label_agreement == 1.0
    open_backend(engine)


def test_a_fixed_batch_is_built_as_it_is(models: ModelMaker, build_here: Build, engine: Path) -> None:
    manifest = build_here(models.mlp(batch=3))
    assert (manifest.batch_rows, manifest.batch_rows_max) == (3, 3)
    assert open_backend(engine).batch_rows_max == 3


def test_an_engine_that_stood_there_is_replaced(models: ModelMaker, build_here: Build, engine: Path) -> None:
    build_here(models.mlp(seed=1))
    before = engine.read_bytes()
    build_here(models.mlp(seed=2))
    assert engine.read_bytes() != before
    open_backend(engine)
    assert sorted(path.name for path in engine.parent.iterdir()) == ["built.engine", "built.engine.json"]


def unsupported(models: ModelMaker, name: str = "volatility_node") -> Path:
    """A model with an operator of a domain without an implementation."""
    graph = helper.make_graph(
        [helper.make_node("Volatility", ["features"], ["logits"], domain="com.example", name=name)],
        "model",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    path = models.new_path()
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=9), path)
    return path


@pytest.mark.parametrize(("name", "shown"), [("volatility_node", "volatility_node"), ("", "Volatility_0")])
def test_an_unsupported_operator_is_named_with_its_node(
    models: ModelMaker, build_here: Build, engine: Path, name: str, shown: str
) -> None:
    with pytest.raises(
        ModelRefused, match=rf"does not support operator com\.example\.Volatility \(node '{shown}'\)"
    ):
        build_here(unsupported(models, name))
    assert not list(engine.parent.iterdir())


def test_rows_that_depend_on_each_other_are_refused_before_anything_is_written(
    models: ModelMaker, build_here: Build, engine: Path
) -> None:
    with pytest.raises(ModelRefused, match="the answer for a row changes with the other rows"):
        build_here(models.mixing())
    assert not list(engine.parent.iterdir())


def test_rows_that_never_share_a_batch_may_depend_on_each_other(
    models: ModelMaker, build_here: Build, engine: Path
) -> None:
    manifest = build_here(models.bounded_together(), batches=Batches(rows_max=1))
    assert isinstance(manifest.accuracy, Accuracy)
    assert manifest.accuracy.max_abs == 0.0
    assert open_backend(engine, batch_rows_max=1).batch_rows_max == 1


def test_free_axes_that_no_profile_covers_are_refused(
    models: ModelMaker, build_here: Build, engine: Path
) -> None:
    node = helper.make_node("Relu", ["features"], ["logits"])
    with pytest.raises(ModelRefused, match="expected a size on every axis but the batch"):
        build_here(models.graph([node], ["N", "levels", 4], ["N", "levels", 4]))
    assert not list(engine.parent.iterdir())


def test_too_little_agreement_writes_nothing(
    models: ModelMaker, build_here: Build, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Accuracy(measured_on="x", rows=2, max_abs=0.0, max_rel=0.0, cosine=1.0, label_agreement=0.5)
    monkeypatch.setattr(pipeline, "measure", lambda *_: half)
    with pytest.raises(AccuracyTooLow, match=r"for 50\.00% of 2 rows, expected at least 60\.00%"):
        build_here(models.mlp(), agreement_min=0.6)
    assert not list(engine.parent.iterdir())
    build_here(models.mlp(), agreement_min=0.5)


def test_rows_that_do_not_fit_the_model_are_refused(
    models: ModelMaker, build_here: Build, engine: Path, rows_file: Path
) -> None:
    with pytest.raises(RowsRefused, match=r"holds float32 \(200, 8\)"):
        build_here(models.mlp(features=4), precision="int8", calibration=rows_file)
    assert not list(engine.parent.iterdir())


def test_a_full_disk_leaves_what_was_there(
    models: ModelMaker, build_here: Build, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_here(models.mlp(seed=1))
    before = {path: path.read_bytes() for path in engine.parent.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        EngineNotWritten, match=r"built\.engine: cannot be written \(No space left on device\)"
    ):
        build_here(models.mlp(seed=2))
    assert {path: path.read_bytes() for path in engine.parent.iterdir()} == before


def test_an_interrupt_leaves_nothing(
    models: ModelMaker, build_here: Build, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "publish_engine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_here(models.mlp())
    assert not list(engine.parent.iterdir())


def test_int8_is_judged_by_rows_that_it_was_not_calibrated_with(
    models: ModelMaker, build_here: Build, rows_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[bytes]] = {}
    judge = pipeline.take_sample

    def to_int8(model: Any, spec: Any, rows: Any, *rest: Any) -> Any:
        seen["calibration"] = {row.tobytes() for row in rows}
        return precision.to_int8(model, spec, rows, *rest)

    def sample(job: Any, rows: Any) -> Any:
        seen["judging"] = {row.tobytes() for row in rows}
        return judge(job, rows)

    monkeypatch.setattr(pipeline, "to_int8", to_int8)
    # Which rows judge is seen nowhere else: the manifest holds four of them.
    monkeypatch.setattr(pipeline, "take_sample", sample)
    doubled = np.load(rows_file).repeat(2, axis=0)
    np.save(rows_file, doubled)
    build_here(models.mlp(), precision="int8", calibration=rows_file)
    assert len(seen["calibration"]) == len(seen["judging"]) == 100
    assert not seen["calibration"] & seen["judging"]


def test_too_few_rows_to_calibrate_and_judge_are_refused(
    models: ModelMaker, build_here: Build, tmp_path: Path
) -> None:
    np.save(tmp_path / "one.npy", np.ones((64, 8), np.float32))
    with pytest.raises(RowsRefused, match="1 different rows in 64, expected at least 2"):
        build_here(models.mlp(), precision="int8", calibration=tmp_path / "one.npy")


def test_an_engine_that_is_far_off_is_not_written_whatever_its_labels(
    models: ModelMaker, build_here: Build, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Accuracy(measured_on="x", rows=2, max_abs=50.0, max_rel=0.0, cosine=1.0, label_agreement=1.0)
    monkeypatch.setattr(pipeline, "measure", lambda *_: far)
    with pytest.raises(AccuracyTooLow, match="up to 50 away from the oracle's"):
        build_here(models.mlp())
    assert not engine.exists()


def test_a_model_that_gives_no_number_is_named_as_the_culprit(
    models: ModelMaker, build_here: Build, engine: Path
) -> None:
    nodes = [
        helper.make_node("Abs", ["features"], ["size"]),
        helper.make_node("Neg", ["size"], ["below"]),
        helper.make_node("Log", ["below"], ["logits"]),
    ]
    with pytest.raises(ModelRefused, match="the model itself answers NaN or infinity to all of"):
        build_here(models.graph(nodes, ["N", 4], ["N", 4]))
    assert not engine.exists()


def test_where_the_reference_evaluator_fails_another_oracle_answers_and_the_manifest_says_so(
    models: ModelMaker, build_here: Build, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build_here(models.conv()).oracle == "ONNX reference evaluator"

    def refuse(self: OracleBackend) -> None:
        raise ModelRefused("the ONNX reference evaluator refuses it: MaxPool")

    monkeypatch.setattr(OracleBackend, "open", refuse)
    manifest = build_here(models.conv())
    assert "without optimisations (the ONNX reference evaluator refuses it: MaxPool)" in manifest.oracle
    assert isinstance(manifest.accuracy, Accuracy)
    assert manifest.accuracy.label_agreement == 1.0
    assert read_manifest(engine).oracle == manifest.oracle


def test_a_capture_that_is_not_whole_calibrates_only_where_that_is_asked_for(
    models: ModelMaker, build_here: Build, engine: Path, tmp_path: Path
) -> None:
    lines = market()
    del lines[[number for number, line in enumerate(lines) if is_depth(line)][300]]
    capture, model = tmp_path / "gap.gz", models.mlp(features=FEATURE_COUNT)
    capture.write_bytes(packed(lines))
    with pytest.raises(RowsRefused, match=r"1 gap, .*line \d+, at .*: --salvage takes what is whole"):
        build_here(model, calibration=capture)
    assert not engine.exists()
    manifest = build_here(model, calibration=capture, salvage=True)
    assert manifest.capture_faults == {"gap": 1}
    assert manifest.first_capture_faults[0].line > 600
    assert read_manifest(engine) == manifest
    assert manifest.rebuild[-1] == "--salvage"
