"""Engines of models that have several inputs, outputs or other types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.e2e.test_any_model import CLASSES, write_classifier
from tests.models.onnx.test_flatten import FLOAT, answers, rows_for, value, write
from tests.models.onnx.test_missing import write_tree

from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import BuildRequest
from sigd.models.build.runtimes import Gpu, Machine
from sigd.models.engine import read_manifest
from sigd.models.errors import ModelRefused
from sigd.models.reading import Missing, ReadOptions
from sigd.models.registry import open_backend


def test_an_engine_of_a_classifier_answers_as_its_model(tmp_path: Path) -> None:
    model, engine = write_classifier(tmp_path), tmp_path / "m.engine"
    manifest = build_engine(BuildRequest(model=model, engine=engine, runtime="onnxruntime"))
    assert [one.name for one in manifest.input_columns] == ["instrument", "x"]
    assert manifest.output_columns[1].labels == CLASSES
    served, original = open_backend(engine), open_backend(model)
    assert served.spec.input_columns == original.spec.input_columns
    rows = rows_for(original.spec)
    np.testing.assert_allclose(answers(served, rows), answers(original, rows), atol=1e-6)
    served.close()
    original.close()


def test_an_engine_of_trees_knows_missing_values(tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    build_engine(BuildRequest(model=write_tree(tmp_path), engine=engine, runtime="onnxruntime"))
    assert read_manifest(engine).reads_missing == "trees that know missing values"
    for missing, taken in ((Missing.AUTO, True), (Missing.REFUSE, False)):
        backend = open_backend(engine, reading=ReadOptions(missing=missing))
        assert backend.spec.takes_nan is taken
        backend.close()


def test_sizes_of_free_axes_are_the_builds(tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]
    model = write(
        tmp_path, nodes, [value("x", FLOAT, ["N", "T", 2])], [value("y", FLOAT, ["N", 2])], weights=()
    )
    engine = tmp_path / "m.engine"
    manifest = build_engine(BuildRequest(model=model, engine=engine, runtime="onnxruntime", sizes={"T": 3}))
    assert "T=3" in manifest.rebuild
    with pytest.raises(ModelRefused, match="--dim T=3 is for an ONNX file"):
        open_backend(engine, reading=ReadOptions({"T": 3}))
    backend = open_backend(engine)
    assert backend.spec.features == 6
    backend.close()


def test_trees_are_not_built_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    from sigd.models.build import pipeline

    monkeypatch.setattr(pipeline, "load", lambda runtime: onnxruntime)
    machine = Machine(frozenset({"tensorrt-rtx", "onnxruntime"}), Gpu("a card", "8.6", "13.0"), "")
    request = BuildRequest(
        model=write_tree(tmp_path),
        engine=tmp_path / "m.engine",
        runtime="tensorrt-rtx",
        compute_capability="8.6",
    )
    with pytest.raises(
        ModelRefused, match=r"TreeEnsembleRegressor of ai.onnx.ml cannot be built for tensorrt-rtx"
    ):
        build_engine(request, machine=machine)
