"""`sigd inspect` on models, engines and what is neither."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from onnx import helper
from tests.e2e.test_any_model import write_classifier
from tests.models.onnx.test_missing import write_tree

from sigd.models.build.pipeline import build_engine
from sigd.models.build.request import BuildRequest
from sigd.models.engine import read_manifest
from sigd.models.manifest import encode_manifest, manifest_path

if TYPE_CHECKING:
    from tests.conftest import ModelMaker

Run = Callable[..., Any]


@pytest.fixture
def engine(models: ModelMaker, tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    build_engine(BuildRequest(model=models.mlp(), engine=path, runtime="onnxruntime"))
    return path


def test_a_model_is_described(run_command: Run, models: ModelMaker) -> None:
    ran = run_command("inspect", models.mlp())
    assert ran.code == 0
    assert "features float32 [N, 8], features 0 to 7" in ran.out
    assert "logits float32 [N, 3], outputs 0 to 2" in ran.out
    assert "3: 2 Gemm, 1 Relu" in ran.out
    assert "parameters    195" in ran.out


def test_every_input_and_output_is_shown_with_its_columns(run_command: Run, tmp_path: Path) -> None:
    ran = run_command("inspect", write_classifier(tmp_path))
    assert ran.code == 0
    assert "instrument int64 [N], feature 0\n" in ran.out
    assert "x float32 [N, 6], features 1 to 6\n" in ran.out
    assert "label string [N], output 0 (0 = down, 1 = flat, 2 = up)\n" in ran.out
    assert "probabilities float32 [N, 3], outputs 1 to 3 (down, flat, up)\n" in ran.out


def test_trees_and_missing_values_are_shown(run_command: Run, tmp_path: Path) -> None:
    ran = run_command("inspect", write_tree(tmp_path))
    assert "trees         1, with 1 thresholds\n" in ran.out
    assert "NaN           a missing value (trees that know missing values)\n" in ran.out


def test_a_model_that_cannot_be_served_is_shown_with_the_reason(run_command: Run, models: ModelMaker) -> None:
    path = models.graph([helper.make_node("Relu", ["features"], ["logits"])], ["N", "T"], ["N", "T"])
    ran = run_command("inspect", path)
    assert ran.code == 1
    assert "input         features float32 [N, T]\n" in ran.out
    assert "cannot be served: " in ran.out
    assert "--dim T=SIZE" in ran.out
    assert run_command("inspect", path, "--dim", "T=5").code == 0


@pytest.mark.parametrize("kind", ["tcn", "lstm", "conv"])
def test_it_is_said_whether_native_answers_steps(run_command: Run, models: ModelMaker, kind: str) -> None:
    pytest.importorskip("sigd.models.native._kernels")
    path = {"tcn": models.tcn(20), "lstm": models.lstm(), "conv": models.conv(2, 4)}[kind]
    told = {
        "tcn": "steps         native runs each step from the columns of its layers, which take 64 bytes",
        "lstm": "steps         native runs each step from the states of its windows, which take ",
        "conv": "steps         native runs the whole window of each step: a step would repeat ",
    }
    ran = run_command("inspect", path)
    assert told[kind] in ran.out
    history = json.loads(run_command("inspect", path, "--json").out)["history"]
    assert history["native_answers_steps"] is (kind != "conv")
    assert (history["native_bytes"] > 0) is (kind != "conv")
    assert history["native_told"] in ran.out


def test_layers_are_listed_on_demand(run_command: Run, models: ModelMaker) -> None:
    assert "dense0" not in run_command("inspect", models.mlp()).out
    assert "dense0" in run_command("inspect", models.mlp(), "--layers").out


def test_an_engine_shows_its_manifest_and_a_command_to_copy(run_command: Run, engine: Path) -> None:
    ran = run_command("inspect", engine)
    assert ran.code == 0
    assert "1 com.microsoft.FusedGemm" in ran.out
    assert "labels agree 100.00%" in ran.out
    rebuild = " ".join(read_manifest(engine).rebuild)
    assert f"rebuild       {rebuild}\n" in ran.out


def test_json_holds_everything(run_command: Run, engine: Path) -> None:
    found = json.loads(run_command("inspect", engine, "--json").out)
    assert found["intact"] is True
    assert found["manifest"] == json.loads(manifest_path(engine).read_bytes())
    assert [layer["operator"] for layer in found["layers"]] == ["com.microsoft.FusedGemm", "Gemm"]
    (only,) = found["inputs"]
    assert (only["name"], only["axes"], only["first_column"], only["last_column"]) == (
        "features",
        "[N, 8]",
        0,
        7,
    )


def test_an_engine_that_was_changed_exits_1(run_command: Run, engine: Path) -> None:
    engine.write_bytes(engine.read_bytes() + b"\0")
    ran = run_command("inspect", engine)
    assert ran.code == 1
    assert "not the engine that its manifest describes" in ran.out
    found = json.loads(run_command("inspect", engine, "--json").out)
    assert (found["intact"], found["layers"]) == (False, None)


def test_a_plan_of_a_runtime_that_is_not_here_shows_all_but_its_layers(
    run_command: Run, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    manifest = read_manifest(engine)
    changed = msgspec.structs.replace(
        manifest, runtime="tensorrt-rtx", tools={**manifest.tools, "tensorrt-rtx": "1.7.1.116"}
    )
    manifest_path(engine).write_bytes(encode_manifest(changed))
    ran = run_command("inspect", engine)
    assert ran.code == 0
    assert "runtime       tensorrt-rtx 1.7.1.116" in ran.out
    assert "layers cannot be read here: tensorrt-rtx cannot be imported" in ran.out


@pytest.mark.parametrize("name", ["gone.onnx", "gone.engine"])
def test_what_is_not_there_exits_2(run_command: Run, name: str) -> None:
    ran = run_command("inspect", name)
    assert ran.code == 2
    assert "no such file" in ran.err
